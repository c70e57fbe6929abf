use super::*;
use crate::test_util::session_key;

mod invariants;
mod kept;
mod lines;
mod shared;

fn key(name: &str) -> Arc<SessionKey> {
    Arc::new(session_key(name))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn hour(from: i64) -> Validity {
    Validity {
        not_before: at(from),
        not_after: at(from + 3600),
    }
}

fn wanted(name: &str) -> Event {
    Event::Acquired {
        key: key(name),
        namespace: "default".into(),
        cause: Cause::New,
    }
}

fn changed(name: &str) -> Event {
    Event::Changed {
        key: key(name),
        namespace: "default".into(),
    }
}

fn fetch(name: &str) -> Vec<Action> {
    vec![Action::Fetch(key(name))]
}

#[test]
fn a_herd_makes_one_call() {
    let mut engine = Engine::new(EngineOptions::default());
    assert_eq!(engine.handle(wanted("a"), at(0)), fetch("a"));
    for _ in 0..500 {
        assert_eq!(engine.handle(wanted("a"), at(0)), []);
        assert_eq!(engine.handle(Event::Prioritized(key("a")), at(0)), []);
    }
    assert_eq!(engine.handle(Event::Fetched(key("a"), hour(0)), at(0)), []);
    assert_eq!(engine.handle(wanted("a"), at(1)), []);
}

#[test]
fn a_session_is_fetched_again_before_half_its_life() {
    for name in ["a", "b", "c", "d", "e"] {
        let mut engine = Engine::new(EngineOptions::default());
        engine.handle(wanted(name), at(0));
        engine.handle(Event::Fetched(key(name), hour(0)), at(0));
        let due = engine.wake_at().unwrap();
        assert!((at(1440)..=at(1728)).contains(&due), "{due}");
        assert_eq!(engine.handle(Event::Tick, due - seconds(1)), []);
        assert_eq!(engine.handle(Event::Tick, due), fetch(name));
        assert_eq!(engine.handle(Event::Tick, due + seconds(60)), []);
    }
}

#[test]
fn a_waiter_that_goes_away_hurts_nobody() {
    let mut engine = Engine::new(EngineOptions::default());
    engine.handle(wanted("a"), at(0));
    engine.handle(wanted("a"), at(0));
    assert_eq!(engine.handle(Event::Released(key("a")), at(0)), []);
    assert_eq!(engine.handle(Event::Fetched(key("a"), hour(0)), at(1)), []);
    assert!(engine.wake_at().is_some());
}

#[test]
fn final_errors_are_tried_slowly_and_at_once_after_a_change() {
    let mut engine = Engine::new(EngineOptions::default());
    engine.handle(wanted("a"), at(0));
    let mut now = at(0);
    let mut waits = Vec::new();
    for _ in 0..6 {
        engine.handle(Event::Failed(key("a"), FailureKind::Final), now);
        let due = engine.wake_at().unwrap();
        waits.push(now.duration_until(due).as_secs());
        for _ in 0..16 {
            assert_eq!(engine.handle(Event::Prioritized(key("a")), now), []);
        }
        assert_eq!(engine.handle(Event::Tick, due), fetch("a"));
        now = due;
    }
    for (wait, expected) in waits.iter().zip([30, 60, 120, 240, 300, 300]) {
        assert!((expected..=expected * 5 / 4).contains(wait), "{waits:?}");
    }
    engine.handle(Event::Failed(key("a"), FailureKind::Final), now);
    assert_eq!(engine.handle(changed("a"), now), fetch("a"));
    // A second change during the call does not cause another call.
    assert_eq!(engine.handle(changed("a"), now), []);
}

#[test]
fn a_change_does_not_trigger_an_early_refresh() {
    let mut engine = Engine::new(EngineOptions::default());
    engine.handle(wanted("a"), at(0));
    engine.handle(Event::Fetched(key("a"), hour(0)), at(0));
    assert_eq!(engine.handle(changed("a"), at(1)), []);
    engine.handle(wanted("b"), at(1));
    engine.handle(Event::Failed(key("b"), FailureKind::Throttled), at(1));
    assert_eq!(engine.handle(changed("b"), at(1)), []);
}

#[test]
fn three_seconds_of_trouble_make_three_calls_at_most() {
    for kind in [
        FailureKind::Final,
        FailureKind::Temporary,
        FailureKind::Throttled,
    ] {
        let mut engine = Engine::new(EngineOptions::default());
        let mut calls = engine.handle(wanted("a"), at(0)).len();
        for tenth in 0..30 {
            let now = at(0) + SignedDuration::from_millis(tenth * 100);
            let started = engine.handle(Event::Tick, now).len()
                + engine.handle(Event::Prioritized(key("a")), now).len();
            calls += started;
            if started > 0 || tenth == 0 {
                engine.handle(Event::Failed(key("a"), kind), now);
            }
        }
        assert!(calls <= 3, "{calls} calls for {kind:?}");
    }
}

#[test]
fn refresh_goes_on_after_failures_and_recovers() {
    let mut engine = Engine::new(EngineOptions::default());
    engine.handle(wanted("a"), at(0));
    engine.handle(Event::Fetched(key("a"), hour(0)), at(0));
    let mut now = engine.wake_at().unwrap();
    assert_eq!(engine.handle(Event::Tick, now), fetch("a"));
    // STS is unavailable for half an hour: calls back off to about one per minute.
    let mut calls = 0;
    while now < at(3600) {
        engine.handle(Event::Failed(key("a"), FailureKind::Temporary), now);
        now = engine.wake_at().unwrap();
        calls += engine.handle(Event::Tick, now).len();
    }
    assert!((20..=45).contains(&calls), "{calls}");
    assert_eq!(
        engine.handle(
            Event::Fetched(
                key("a"),
                Validity {
                    not_before: now,
                    not_after: now + seconds(3600)
                }
            ),
            now
        ),
        []
    );
    assert!(engine.wake_at().unwrap() >= now + seconds(1440));
}

#[test]
fn what_nobody_needs_is_not_refreshed() {
    let mut engine = Engine::new(EngineOptions::default());
    engine.handle(wanted("a"), at(0));
    engine.handle(Event::Fetched(key("a"), hour(0)), at(0));
    assert_eq!(engine.handle(Event::Released(key("a")), at(10)), []);
    // The next pod of the workload finds the session.
    assert_eq!(engine.handle(wanted("a"), at(20)), []);
    assert_eq!(engine.handle(Event::Released(key("a")), at(30)), []);
    let due = engine.wake_at().unwrap();
    assert_eq!(engine.handle(Event::Tick, due), [Action::Forget(key("a"))]);
    assert_eq!(engine.counts(at(0)).sessions, 0);
}

#[test]
fn reacquiring_does_not_retry_a_failure_early() {
    for kind in [
        FailureKind::Final,
        FailureKind::Temporary,
        FailureKind::Throttled,
    ] {
        for while_it_is_asked in [false, true] {
            let mut engine = Engine::new(EngineOptions::default());
            assert_eq!(engine.handle(wanted("a"), at(0)), fetch("a"));
            if while_it_is_asked {
                assert_eq!(engine.handle(Event::Released(key("a")), at(0)), []);
            }
            engine.handle(Event::Failed(key("a"), kind), at(0));
            let due = engine.wake_at().unwrap();
            if !while_it_is_asked {
                assert_eq!(engine.handle(Event::Released(key("a")), at(0)), []);
            }
            for _ in 0..100 {
                assert_eq!(engine.handle(wanted("a"), at(0)), []);
                assert_eq!(engine.handle(Event::Prioritized(key("a")), at(0)), []);
                assert_eq!(engine.handle(Event::Released(key("a")), at(0)), []);
            }
            engine.handle(wanted("a"), at(0));
            assert_eq!(engine.handle(Event::Tick, due), fetch("a"));
            // The sequence of failures continues.
            engine.handle(Event::Failed(key("a"), kind), due);
            let again = engine.wake_at().unwrap();
            assert!(due.duration_until(again) > at(0).duration_until(due));
        }
    }
}

#[test]
fn unused_failures_are_bounded_and_expire() {
    let mut engine = Engine::new(EngineOptions::default());
    let mut forgotten = 0;
    for n in 0..20 {
        let name = format!("r{n}");
        engine.handle(wanted(&name), at(0));
        engine.handle(Event::Failed(key(&name), FailureKind::Final), at(0));
        forgotten += engine.handle(Event::Released(key(&name)), at(0)).len();
    }
    assert_eq!((forgotten, engine.counts(at(0)).sessions), (12, 8));
    assert_eq!(engine.handle(Event::Tick, at(60)).len(), 8);
    assert_eq!(engine.counts(at(60)).sessions, 0);
    assert_eq!(engine.wake_at(), None);
}

#[test]
fn calls_in_flight_are_bounded_and_waiting_pods_go_first() {
    let mut engine = Engine::new(EngineOptions {
        in_flight: 4,
        ahead: 1,
        ..EngineOptions::default()
    });
    let done = |name| Event::Fetched(key(name), hour(0));
    let asked = |name| Event::Prioritized(key(name));
    assert_eq!(engine.handle(wanted("a"), at(0)), fetch("a"));
    for name in ["b", "c", "d", "e", "f", "g"] {
        assert_eq!(engine.handle(wanted(name), at(0)), [], "ahead of need");
    }
    assert_eq!(engine.handle(asked("e"), at(0)), fetch("e"));
    assert_eq!(engine.handle(asked("f"), at(0)), fetch("f"));
    assert_eq!(engine.handle(asked("g"), at(0)), fetch("g"));
    assert_eq!(engine.handle(asked("d"), at(0)), [], "four are in flight");
    assert_eq!(engine.handle(done("a"), at(0)), fetch("d"));
    for name in ["e", "f", "g"] {
        assert_eq!(engine.handle(done(name), at(0)), []);
    }
    let temporary = Event::Failed(key("d"), FailureKind::Temporary);
    assert_eq!(engine.handle(temporary, at(0)), fetch("b"));
    assert_eq!(engine.handle(done("b"), at(0)), fetch("c"));
    assert_eq!(engine.handle(done("c"), at(0)), []);
    let counts = engine.counts(at(0));
    assert_eq!((counts.sessions, counts.in_flight), (7, 0));
    assert_eq!((counts.urgent, counts.prefetch, counts.held), (0, 0, 0));
}

#[test]
fn flipping_annotations_uses_up_the_namespaces_own_allowance() {
    let mut engine = Engine::new(EngineOptions {
        in_flight: 10_000,
        namespace_burst: 200,
        namespace_rate: 10.0,
        ..EngineOptions::default()
    });
    let mut calls = 0;
    let mut now = at(0);
    for flip in 0..1000 {
        let name = format!("r{flip}");
        now = at(0) + SignedDuration::from_millis(flip * 10);
        let flipped = Event::Acquired {
            key: key(&name),
            namespace: "default".into(),
            cause: Cause::Change,
        };
        calls += engine
            .handle(flipped, now)
            .iter()
            .filter(|action| matches!(action, Action::Fetch(_)))
            .count();
        engine.handle(Event::Released(key(&name)), now);
        engine.handle(Event::Fetched(key(&name), hour(0)), now);
    }
    assert!((20..=31).contains(&calls), "{calls}");
    // The namespace does not accumulate sessions.
    let kept = engine.counts(now).sessions;
    assert!(kept <= 8 + 1, "{kept}");
    // Other namespaces are not affected.
    let other = Event::Acquired {
        key: key("other"),
        namespace: "other".into(),
        cause: Cause::Change,
    };
    assert_eq!(engine.handle(other, now), fetch("other"));
}

#[test]
fn an_expiry_in_the_past_does_not_make_a_storm() {
    let mut engine = Engine::new(EngineOptions::default());
    engine.handle(wanted("a"), at(0));
    engine.handle(
        Event::Fetched(
            key("a"),
            Validity {
                not_before: at(0),
                not_after: at(0),
            },
        ),
        at(0),
    );
    assert_eq!(engine.wake_at(), Some(at(5)));
}
