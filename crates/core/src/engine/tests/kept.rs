//! Tests of unused sessions, held sessions, and wake-up times.

use super::*;

fn small() -> EngineOptions {
    EngineOptions {
        namespace_burst: 2,
        namespace_rate: 0.5,
        change_cost: 2,
        namespace_idle: 2,
        ..EngineOptions::default()
    }
}

#[test]
fn a_reacquired_session_is_not_dropped_with_unused_ones() {
    let mut engine = Engine::new(EngineOptions {
        namespace_idle: 2,
        ..EngineOptions::default()
    });
    for name in ["again", "b", "c", "d"] {
        engine.handle(wanted(name), at(0));
        engine.handle(Event::Fetched(key(name), hour(0)), at(0));
    }
    assert_eq!(engine.handle(Event::Released(key("again")), at(1)), []);
    engine.handle(wanted("again"), at(1));
    assert_eq!(engine.handle(Event::Released(key("b")), at(2)), []);
    assert_eq!(engine.handle(Event::Released(key("c")), at(2)), []);
    let gone = engine.handle(Event::Released(key("d")), at(2));
    assert_eq!(gone, [Action::Forget(key("b"))]);
    // It is still refreshed, and the two kept sessions are dropped in time.
    let mut actions = engine.handle(Event::Tick, at(1728));
    actions.sort_by_key(|action| format!("{action:?}"));
    let expected = [
        Action::Fetch(key("again")),
        Action::Forget(key("c")),
        Action::Forget(key("d")),
    ];
    assert_eq!(actions, expected);
}

#[test]
fn a_session_that_arrives_without_a_user_is_kept_if_it_lives() {
    for (lifetime, kept) in [(hour(0), 1), (hour(-3600), 0)] {
        let mut engine = Engine::new(EngineOptions::default());
        engine.handle(wanted("a"), at(0));
        assert_eq!(engine.handle(Event::Released(key("a")), at(0)), []);
        let actions = engine.handle(Event::Fetched(key("a"), lifetime), at(0));
        assert_eq!(actions.len(), 1 - kept, "{actions:?}");
        assert_eq!(engine.counts(at(0)).sessions, kept);
    }
}

#[test]
fn unused_sessions_are_dropped_while_all_calls_are_in_flight() {
    let mut engine = Engine::new(EngineOptions {
        in_flight: 1,
        ..EngineOptions::default()
    });
    engine.handle(wanted("a"), at(0));
    engine.handle(Event::Fetched(key("a"), hour(0)), at(0));
    engine.handle(Event::Released(key("a")), at(1));
    assert_eq!(engine.handle(wanted("b"), at(2)), fetch("b"));
    let gone = [Action::Forget(key("a"))];
    assert_eq!(engine.handle(Event::Tick, at(1728)), gone);
}

#[test]
fn a_new_pod_causes_the_fetch_of_an_expired_session() {
    let mut engine = Engine::new(EngineOptions::default());
    // A validity shorter than the minimum time between two fetches.
    let lifetime = Validity {
        not_before: at(0),
        not_after: at(1),
    };
    engine.handle(wanted("a"), at(0));
    engine.handle(Event::Fetched(key("a"), lifetime), at(0));
    assert_eq!(engine.handle(wanted("a"), at(0)), []);
    assert_eq!(engine.handle(wanted("a"), at(1)), fetch("a"));
    // After an error, the wait applies to new pods as well.
    engine.handle(Event::Failed(key("a"), FailureKind::Final), at(1));
    assert_eq!(engine.handle(wanted("a"), at(2)), []);
}

#[test]
fn sessions_that_are_due_at_the_same_instant_are_all_refreshed() {
    let mut engine = Engine::new(EngineOptions::default());
    // A validity so short that the minimum time between two fetches applies, without jitter.
    let lifetime = Validity {
        not_before: at(0),
        not_after: at(1),
    };
    let names = ["a", "b", "c"];
    for name in names {
        engine.handle(wanted(name), at(0));
    }
    for name in names {
        engine.handle(Event::Fetched(key(name), lifetime), at(0));
    }
    assert_eq!(engine.wake_at(), Some(at(5)));
    assert_eq!(engine.handle(Event::Tick, at(5)).len(), 3);
}

#[test]
fn the_engine_is_woken_when_a_held_session_can_be_paid_for() {
    let mut engine = Engine::new(small());
    for name in ["a", "b"] {
        assert_eq!(engine.handle(wanted(name), at(0)), fetch(name));
    }
    assert_eq!(engine.handle(wanted("c"), at(0)), []);
    assert_eq!(engine.counts(at(0)).held, 1);
    // Half a fetch per second, and nothing else is due.
    assert_eq!(engine.wake_at(), Some(at(2)));
    assert_eq!(engine.handle(Event::Tick, at(1)), []);
    assert_eq!(engine.wake_at(), Some(at(2)));
    assert_eq!(engine.handle(Event::Tick, at(2)), fetch("c"));
    assert_eq!((engine.wake_at(), engine.counts(at(2)).held), (None, 0));
}

#[test]
fn a_held_session_without_a_user_leaves_its_place() {
    let mut engine = Engine::new(small());
    for name in ["a", "b", "c", "d"] {
        engine.handle(wanted(name), at(0));
    }
    assert_eq!(engine.counts(at(0)).held, 2);
    let gone = [Action::Forget(key("c"))];
    assert_eq!(engine.handle(Event::Released(key("c")), at(0)), gone);
    assert_eq!(engine.counts(at(0)).held, 1);
    // The other one is now first.
    assert_eq!(engine.handle(Event::Tick, at(2)), fetch("d"));
    // Later sessions do not wait behind a dropped one.
    engine.handle(wanted("e"), at(2));
    engine.handle(Event::Released(key("e")), at(2));
    assert_eq!((engine.wake_at(), engine.counts(at(2)).held), (None, 0));
    assert_eq!(engine.handle(wanted("f"), at(4)), fetch("f"));
}

#[test]
fn repeated_prioritization_has_no_effect() {
    let mut engine = Engine::new(EngineOptions {
        in_flight: 1,
        ..small()
    });
    assert_eq!(engine.handle(wanted("a"), at(0)), fetch("a"));
    // One session is queued, and one waits for its namespace's budget.
    engine.handle(wanted("b"), at(0));
    for _ in 0..3 {
        engine.handle(Event::Prioritized(key("b")), at(0));
        let counts = engine.counts(at(0));
        assert_eq!((counts.urgent, counts.prefetch, counts.held), (1, 0, 0));
    }
    let done = Event::Fetched(key("a"), hour(0));
    assert_eq!(engine.handle(done, at(0)), fetch("b"));
    engine.handle(wanted("c"), at(0));
    let done = Event::Fetched(key("b"), hour(0));
    assert_eq!(engine.handle(done, at(0)), []);
    for _ in 0..3 {
        engine.handle(Event::Prioritized(key("c")), at(0));
        let counts = engine.counts(at(0));
        assert_eq!((counts.urgent, counts.prefetch, counts.held), (0, 0, 1));
    }
    assert_eq!(engine.handle(Event::Tick, at(2)), fetch("c"));
    let counts = engine.counts(at(2));
    assert_eq!((counts.urgent, counts.prefetch, counts.held), (0, 0, 0));
}

#[test]
fn the_engine_wakes_when_the_rate_has_recovered() {
    let mut engine = Engine::new(EngineOptions {
        calls_per_second: 200,
        ..EngineOptions::default()
    });
    engine.handle(wanted("a"), at(0));
    engine.handle(Event::Failed(key("a"), FailureKind::Throttled), at(0));
    engine.handle(Event::Released(key("a")), at(0));
    // From one call per second to the floor of five, and to the full rate in 30 s.
    assert_eq!(engine.counts(at(0)).rate, Some(5.0));
    engine.handle(Event::Tick, at(10));
    let due = engine.wake_at().unwrap();
    let expected = at(0) + SignedDuration::from_secs_f64(30.0 * 195.0 / 200.0);
    let late = expected.duration_until(due);
    assert!((0..=2).contains(&late.as_millis()), "{late}");
    engine.handle(Event::Tick, due);
    assert_eq!(engine.counts(due).rate, Some(200.0));
    assert_eq!(engine.wake_at(), None);
}

#[test]
fn prefetches_are_a_quarter_on_a_node_and_most_in_a_cluster() {
    let ahead = |options: EngineOptions| (options.in_flight, options.ahead);
    assert_eq!(ahead(EngineOptions::for_node(64)), (64, 16));
    assert_eq!(ahead(EngineOptions::for_cluster(64)), (64, 56));
    assert_eq!(ahead(EngineOptions::for_cluster(256)), (256, 224));
    for few in [1, 2, 3] {
        assert_eq!(EngineOptions::for_node(few).ahead, 1, "never none");
    }
    assert_eq!(EngineOptions::for_cluster(1).ahead, 1);
    let cluster = EngineOptions::for_cluster(64);
    let node = EngineOptions::for_node(64);
    assert_eq!(cluster.namespace_burst, 10 * node.namespace_burst);
    assert_eq!(cluster.change_cost, 10 * node.change_cost);
    assert!((cluster.namespace_rate - 10.0 * node.namespace_rate).abs() < 1e-9);
}
