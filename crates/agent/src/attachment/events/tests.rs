use std::collections::VecDeque;
use std::io;

use super::*;
use crate::attachment::{Kind, Mac};

const MAC: Option<Mac> = Some(Mac([2, 0, 0, 0, 0, 5]));
const OTHER: Event = Event::LinkGone(9);

/// A scripted source of events.
#[derive(Debug, Default)]
struct FakeEvents(VecDeque<Result<Vec<Event>, NetlinkError>>);

impl EventSource for FakeEvents {
    fn read(&mut self) -> Result<Option<Vec<Event>>, NetlinkError> {
        self.0.pop_front().transpose()
    }
}

fn events(fake: impl IntoIterator<Item = Event>) -> Events<FakeEvents> {
    Events::new(FakeEvents(
        fake.into_iter().map(|event| Ok(vec![event])).collect(),
    ))
}

fn many(event: Event) -> impl Iterator<Item = Event> {
    std::iter::repeat_n(event, MAX_READS)
}

fn reach(events: &mut Events<FakeEvents>) -> Reached {
    events.catch_up(|_| ()).unwrap()
}

/// Returns the results of two reads of which the first leaves one event.
pub(in crate::attachment) fn behind_and_recovered() -> [Reached; 2] {
    let mut events = events(many(OTHER).chain([OTHER]));
    [reach(&mut events), reach(&mut events)]
}

fn at(kind: Kind) -> Attachment {
    Attachment {
        ifindex: 3,
        name: "if3".to_owned(),
        kind,
    }
}

fn own() -> Attachment {
    at(Kind::PointToPoint)
}

fn shared() -> [Attachment; 2] {
    let bridge = Kind::Bridge {
        mac: MAC,
        port: Some(7),
    };
    [at(bridge), at(Kind::Shared { mac: MAC })]
}

/// The first moment at which no accepted connection can have been opened before `end`.
fn afterwards(end: Instant) -> Instant {
    end + HALF_OPEN + Duration::from_nanos(1)
}

/// Asserts the verdict on an address that the kernel reports at its pod's attachment.
fn assert_confirmed(reached: Reached, accepted: Instant, verdict: Verdict) {
    for pod_attachment in shared() {
        assert_eq!(
            reached.confirm(Verdict::Same, &pod_attachment, accepted),
            verdict
        );
        for other in [Verdict::Changed, Verdict::Unrecorded, Verdict::Unknown] {
            assert_eq!(reached.confirm(other, &pod_attachment, accepted), other);
        }
    }
    // The redirect rules drop packets from elsewhere.
    let routed = reached.confirm(Verdict::Same, &own(), accepted);
    assert_eq!(routed, Verdict::Same);
}

#[test]
fn every_event_is_taken_in_once() {
    let mut events = events([OTHER, Event::LinkGone(4)]);
    let mut taken = Vec::new();
    let reached = events.catch_up(|event| taken.push(*event)).unwrap();
    assert_eq!(taken, [OTHER, Event::LinkGone(4)]);
    assert!(reached.all && !reached.unsure && !reached.recovered);
    assert_confirmed(reached, Instant::now(), Verdict::Same);
    events
        .catch_up(|event| panic!("{event:?} comes again"))
        .unwrap();
}

#[test]
fn connections_from_before_the_end_of_a_loss_stay_refused() {
    for fake in [
        vec![Event::Lost],
        vec![Event::Lost, OTHER],
        vec![OTHER, Event::Lost],
    ] {
        let before = Instant::now();
        let mut events = events(fake);
        let reached = reach(&mut events);
        assert!(reached.all && reached.unsure);
        let after = Instant::now();
        for reached in [reached, reach(&mut events), reach(&mut events)] {
            assert_confirmed(reached, before, Verdict::EventsLost);
            // It may have been waiting to be accepted.
            let waiting = before + HALF_OPEN;
            assert_confirmed(reached, waiting, Verdict::EventsLost);
            assert_confirmed(reached, afterwards(after), Verdict::Same);
        }
        assert!(!reach(&mut events).unsure);
        // The next loss affects those that were accepted after the first.
        events.source.0.push_back(Ok(vec![Event::Lost]));
        let reached = reach(&mut events);
        assert_confirmed(reached, after, Verdict::EventsLost);
    }
}

#[test]
fn a_loss_goes_on_until_there_is_nothing_left_to_read() {
    // The kernel silently drops more while events are unread.
    let mut events = events([Event::Lost].into_iter().chain(many(OTHER)));
    let first = reach(&mut events);
    assert!(!first.all && first.unsure);
    let meanwhile = Instant::now() + 2 * HALF_OPEN;
    assert_confirmed(first, meanwhile, Verdict::EventsLost);
    let second = reach(&mut events);
    assert!(second.all && second.unsure && second.recovered);
    let meanwhile = Instant::now();
    assert_confirmed(second, meanwhile, Verdict::EventsLost);
    assert_confirmed(second, afterwards(meanwhile), Verdict::Same);
    assert!(!reach(&mut events).unsure);
}

#[test]
fn unread_events_make_the_verdict_unknown() {
    let accepted = Instant::now();
    let mut events = events(many(OTHER).chain(many(OTHER)).chain([OTHER]));
    for recovered in [false, false, true] {
        let reached = reach(&mut events);
        assert_eq!((reached.all, reached.recovered), (recovered, recovered));
        assert!(!reached.unsure);
        let verdict = if recovered {
            Verdict::Same
        } else {
            Verdict::Unknown
        };
        assert_confirmed(reached, accepted, verdict);
    }
    assert!(!reach(&mut events).recovered);
}

#[test]
fn an_error_of_the_source_counts_as_a_loss() {
    let accepted = Instant::now();
    let mut events = events([]);
    let error = NetlinkError::Socket(io::ErrorKind::OutOfMemory.into());
    events.source.0.push_back(Err(error));
    assert!(events.catch_up(|_| ()).is_err());
    let reached = reach(&mut events);
    assert!(reached.unsure);
    assert_confirmed(reached, accepted, Verdict::EventsLost);
}
