use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use rolegate_core::test_util::pod;

use super::*;
use crate::attachment::Kind;

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 2, 0, 5));

/// A test double of the attachments with a configurable result, which records its calls.
#[derive(Debug, Default)]
pub(crate) struct StandIn {
    /// The answer for every address; an error if unset.
    pub(crate) verdict: Mutex<Option<Verdict>>,
    pub(crate) generation: AtomicU64,
    /// True if connections are opened from elsewhere than their pod's attachment.
    pub(crate) elsewhere: AtomicBool,
    /// The UID in the container runtime's record of every address.
    pub(crate) recorded: Mutex<Option<Arc<str>>>,
    calls: Mutex<Vec<String>>,
    /// The accept times of the checked connections.
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

    /// Sets the result of later calls.
    pub(crate) fn say(&self, verdict: Option<Verdict>) {
        *self.verdict.lock() = verdict;
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns the number of calls so far.
    pub(crate) fn asked(&self) -> usize {
        self.calls.lock().len()
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock())
    }

    fn called(&self, call: String) {
        self.calls.lock().push(call);
    }
}

impl AttachmentLookup for StandIn {
    fn seen(&self, pod: PodId, addresses: &[IpAddr]) {
        self.called(format!(
            "seen {} {} {} {addresses:?}",
            pod.uid, pod.namespace, pod.name
        ));
    }

    fn recorded_owner(&self, _: IpAddr) -> Option<Arc<str>> {
        self.recorded.lock().clone()
    }

    fn adopt(&self, pod: PodId, address: IpAddr) -> Result<bool, NetlinkError> {
        self.called(format!("adopt {} {address}", pod.uid));
        Ok(!self.elsewhere.load(Ordering::Relaxed))
    }

    fn check(
        &self,
        uid: &str,
        address: IpAddr,
        accepted: Instant,
    ) -> Result<Verdict, NetlinkError> {
        self.called(format!("check {uid} {address}"));
        self.accepted.lock().push(accepted);
        let verdict = *self.verdict.lock();
        verdict.ok_or_else(|| NetlinkError::Response("none".to_owned()))
    }

    fn resolve(&self, _: IpAddr) -> Result<Option<Attachment>, NetlinkError> {
        let pod_attachment = Attachment {
            ifindex: 3,
            name: "if3".to_owned(),
            kind: Kind::PointToPoint,
        };
        Ok((!self.elsewhere.load(Ordering::Relaxed)).then_some(pod_attachment))
    }

    fn is_home(&self, _: &str, _: IpAddr, pod_attachment: Option<&Attachment>) -> bool {
        pod_attachment.is_some()
    }

    fn forget(&self, uid: &str) {
        self.called(format!("forget {uid}"));
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

fn verifier(attachments: &Arc<StandIn>) -> AddressVerifier {
    AddressVerifier::new(None, Some(attachments.clone()))
}

fn workload() -> Workload {
    Workload {
        namespace: "shop".into(),
        name: "web".into(),
        uid: "u1".into(),
        addresses: vec![ADDRESS],
        ..pod(None)
    }
}

#[test]
fn connections_are_checked_once_and_after_each_change() {
    let attachments = StandIn::saying(Verdict::Same);
    let verifier = verifier(&attachments);
    let last = verifier.opened(ADDRESS);
    let check = || verifier.check("u1", ADDRESS, &last);
    assert_eq!((check(), check()), (Verdict::Same, Verdict::Same));
    assert_eq!(attachments.calls(), ["check u1 10.2.0.5"]);
    attachments.say(Some(Verdict::Same));
    assert_eq!((check(), check()), (Verdict::Same, Verdict::Same));
    assert_eq!(attachments.calls().len(), 1);
    // Another connection has its own check.
    assert_eq!(
        verifier.check("u1", ADDRESS, &verifier.opened(ADDRESS)),
        Verdict::Same
    );
    assert_eq!(attachments.calls().len(), 1);
}

#[test]
fn uncertain_verdicts_are_rechecked_and_never_accepted() {
    for unsure in [Some(Verdict::Unknown), Some(Verdict::Unrecorded), None] {
        let attachments = StandIn::saying(Verdict::Same);
        attachments.say(unsure);
        let verifier = verifier(&attachments);
        let last = verifier.opened(ADDRESS);
        for _ in 0..2 {
            let verdict = verifier.check("u1", ADDRESS, &last);
            assert_eq!(verdict, unsure.unwrap_or(Verdict::Unknown));
        }
        assert_eq!(attachments.calls().len(), 2);
        // It only waited for its record.
        *attachments.verdict.lock() = Some(Verdict::Same);
        assert_eq!(verifier.check("u1", ADDRESS, &last), Verdict::Same);
    }
}

#[test]
fn connections_stay_refused_after_the_address_moved() {
    let attachments = StandIn::saying(Verdict::Same);
    let verifier = verifier(&attachments);
    let last = verifier.opened(ADDRESS);
    assert_eq!(verifier.check("u1", ADDRESS, &last), Verdict::Same);
    attachments.say(Some(Verdict::Changed));
    assert_eq!(verifier.check("u1", ADDRESS, &last), Verdict::Changed);
    attachments.say(Some(Verdict::Same));
    assert_eq!(verifier.check("u1", ADDRESS, &last), Verdict::Changed);
    assert_eq!(
        verifier.check("u1", ADDRESS, &verifier.opened(ADDRESS)),
        Verdict::Same
    );
    // The pod that has the address next may have sent this one.
    assert_eq!(verifier.check("u2", ADDRESS, &last), Verdict::Same);
}

#[test]
fn every_check_covers_the_time_since_the_connection_was_accepted() {
    let attachments = StandIn::saying(Verdict::Same);
    let verifier = verifier(&attachments);
    let last = verifier.opened(ADDRESS);
    let accepted = last.accepted;
    for verdict in [Verdict::Same, Verdict::EventsLost, Verdict::EventsLost] {
        attachments.say(Some(verdict));
        assert_eq!(verifier.check("u1", ADDRESS, &last), verdict);
    }
    // The next request checks again, though nothing has changed.
    assert_eq!(verifier.check("u1", ADDRESS, &last), Verdict::EventsLost);
    assert_eq!(*attachments.accepted.lock(), [accepted; 4]);
}

#[test]
fn a_connection_that_was_opened_elsewhere_is_never_good() {
    let attachments = StandIn::saying(Verdict::Same);
    let verifier = verifier(&attachments);
    attachments.elsewhere.store(true, Ordering::Relaxed);
    let last = verifier.opened(ADDRESS);
    attachments.elsewhere.store(false, Ordering::Relaxed);
    for _ in 0..2 {
        assert_eq!(verifier.check("u1", ADDRESS, &last), Verdict::Changed);
    }
    let next = verifier.opened(ADDRESS);
    assert_eq!(verifier.check("u1", ADDRESS, &next), Verdict::Same);
}

#[test]
fn pods_that_come_and_go_reach_the_places() {
    let attachments = StandIn::saying(Verdict::Same);
    let verifier = verifier(&attachments);
    verifier.seen(&workload(), &[ADDRESS]);
    verifier.forget("u1");
    assert_eq!(
        attachments.calls(),
        ["seen u1 shop web [10.2.0.5]", "forget u1"]
    );
}

#[test]
fn without_places_every_address_is_at_home() {
    let verifier = AddressVerifier::default();
    assert_eq!(
        verifier.check("u1", ADDRESS, &verifier.opened(ADDRESS)),
        Verdict::Same
    );
}
