use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use rolegate_core::key_values::KeyValues;
use rolegate_core::workload::{Phase, Wish};

use super::*;
use crate::attachment::Kind;

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 2, 0, 5));

/// A fake of the places that answers as a test sets it, and records the questions.
#[derive(Debug, Default)]
pub(crate) struct StandIn {
    /// The answer for every address; an error if unset.
    pub(crate) verdict: Mutex<Option<Verdict>>,
    pub(crate) generation: AtomicU64,
    /// Whether connections are opened elsewhere than at their pod's place.
    pub(crate) elsewhere: AtomicBool,
    calls: Mutex<Vec<String>>,
    /// When the connections of the questions were accepted.
    accepted: Mutex<Vec<Instant>>,
}

impl StandIn {
    pub(crate) fn saying(verdict: Verdict) -> Arc<Self> {
        Arc::new(Self {
            verdict: Mutex::new(Some(verdict)),
            generation: AtomicU64::new(1),
            ..Self::default()
        })
    }

    /// From now on another thing is true.
    pub(crate) fn say(&self, verdict: Option<Verdict>) {
        *self.verdict.lock().unwrap() = verdict;
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Calls so far.
    pub(crate) fn asked(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn called(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
}

impl Places for StandIn {
    fn seen(&self, pod: PodId, addresses: &[IpAddr]) {
        self.called(format!(
            "seen {} {} {} {addresses:?}",
            pod.uid, pod.namespace, pod.name
        ));
    }

    fn check(
        &self,
        uid: &str,
        address: IpAddr,
        accepted: Instant,
    ) -> Result<Verdict, AttachmentError> {
        self.called(format!("check {uid} {address}"));
        self.accepted.lock().unwrap().push(accepted);
        let verdict = *self.verdict.lock().unwrap();
        verdict.ok_or_else(|| AttachmentError::Answer("none".to_owned()))
    }

    fn resolve(&self, _: IpAddr) -> Result<Option<Attachment>, AttachmentError> {
        let place = Attachment {
            ifindex: 3,
            name: "if3".to_owned(),
            kind: Kind::PointToPoint,
        };
        Ok((!self.elsewhere.load(Ordering::Relaxed)).then_some(place))
    }

    fn is_home(&self, _: &str, _: IpAddr, place: Option<&Attachment>) -> bool {
        place.is_some()
    }

    fn forget(&self, uid: &str) {
        self.called(format!("forget {uid}"));
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn concern(&self) -> Option<String> {
        Some("a concern".to_owned())
    }
}

fn guard(places: &Arc<StandIn>) -> Guard {
    Guard::new(None, Some(places.clone()))
}

fn workload() -> Workload {
    Workload {
        namespace: "shop".into(),
        name: "web".into(),
        uid: "u1".into(),
        node: None,
        service_account: "default".into(),
        addresses: vec![ADDRESS],
        phase: Phase::Running,
        host_network: false,
        mirror: false,
        wish: Wish::default(),
        labels: KeyValues::default(),
        annotations: KeyValues::default(),
    }
}

#[test]
fn a_connection_is_looked_at_once_and_again_after_each_change() {
    let places = StandIn::saying(Verdict::Same);
    let guard = guard(&places);
    let last = guard.opened(ADDRESS);
    let check = || guard.check("u1", ADDRESS, &last);
    assert_eq!((check(), check()), (Verdict::Same, Verdict::Same));
    assert_eq!(places.calls(), ["check u1 10.2.0.5"]);
    places.say(Some(Verdict::Same));
    assert_eq!((check(), check()), (Verdict::Same, Verdict::Same));
    assert_eq!(places.calls().len(), 1);
    // Another connection has a look of its own.
    assert_eq!(
        guard.check("u1", ADDRESS, &guard.opened(ADDRESS)),
        Verdict::Same
    );
    assert_eq!(places.calls().len(), 1);
}

#[test]
fn what_is_not_certain_is_asked_again_and_never_good() {
    for unsure in [Some(Verdict::Unknown), Some(Verdict::Unrecorded), None] {
        let places = StandIn::saying(Verdict::Same);
        places.say(unsure);
        let guard = guard(&places);
        let last = guard.opened(ADDRESS);
        for _ in 0..2 {
            let verdict = guard.check("u1", ADDRESS, &last);
            assert_eq!(verdict, unsure.unwrap_or(Verdict::Unknown));
        }
        assert_eq!(places.calls().len(), 2);
        // It waited for its record, no more.
        *places.verdict.lock().unwrap() = Some(Verdict::Same);
        assert_eq!(guard.check("u1", ADDRESS, &last), Verdict::Same);
    }
}

#[test]
fn an_open_connection_on_which_the_address_moved_is_never_good_again() {
    let places = StandIn::saying(Verdict::Same);
    let guard = guard(&places);
    let last = guard.opened(ADDRESS);
    assert_eq!(guard.check("u1", ADDRESS, &last), Verdict::Same);
    places.say(Some(Verdict::Changed));
    assert_eq!(guard.check("u1", ADDRESS, &last), Verdict::Changed);
    places.say(Some(Verdict::Same));
    assert_eq!(guard.check("u1", ADDRESS, &last), Verdict::Changed);
    assert_eq!(
        guard.check("u1", ADDRESS, &guard.opened(ADDRESS)),
        Verdict::Same
    );
    // The pod that has the address next may have sent this one.
    assert_eq!(guard.check("u2", ADDRESS, &last), Verdict::Same);
}

#[test]
fn every_look_of_a_connection_goes_back_to_when_it_was_accepted() {
    let places = StandIn::saying(Verdict::Same);
    let guard = guard(&places);
    let last = guard.opened(ADDRESS);
    let accepted = last.accepted;
    for verdict in [Verdict::Same, Verdict::EventsLost, Verdict::EventsLost] {
        places.say(Some(verdict));
        assert_eq!(guard.check("u1", ADDRESS, &last), verdict);
    }
    // The next request asks again, though nothing has changed.
    assert_eq!(guard.check("u1", ADDRESS, &last), Verdict::EventsLost);
    assert_eq!(*places.accepted.lock().unwrap(), [accepted; 4]);
}

#[test]
fn a_connection_that_was_opened_elsewhere_is_never_good() {
    let places = StandIn::saying(Verdict::Same);
    let guard = guard(&places);
    places.elsewhere.store(true, Ordering::Relaxed);
    let last = guard.opened(ADDRESS);
    places.elsewhere.store(false, Ordering::Relaxed);
    for _ in 0..2 {
        assert_eq!(guard.check("u1", ADDRESS, &last), Verdict::Changed);
    }
    let next = guard.opened(ADDRESS);
    assert_eq!(guard.check("u1", ADDRESS, &next), Verdict::Same);
}

#[test]
fn pods_that_come_and_go_reach_the_places() {
    let places = StandIn::saying(Verdict::Same);
    let guard = guard(&places);
    guard.seen(&workload(), &[ADDRESS]);
    guard.forget("u1");
    assert_eq!(places.calls(), ["seen u1 shop web [10.2.0.5]", "forget u1"]);
    assert_eq!(guard.concern().as_deref(), Some("a concern"));
}

#[test]
fn without_places_every_address_is_at_home() {
    let guard = Guard::default();
    assert_eq!(
        guard.check("u1", ADDRESS, &guard.opened(ADDRESS)),
        Verdict::Same
    );
    assert_eq!(guard.concern(), None);
}
