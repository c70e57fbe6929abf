//! Tests of sessions that several namespaces need.

use super::lines::{MILLISECOND, Simulation};
use super::*;

fn options() -> EngineOptions {
    EngineOptions {
        namespace_burst: 10,
        namespace_rate: 1.0,
        ..EngineOptions::for_node(64)
    }
}

/// Exhausts a namespace's budget and leaves `more` sessions waiting for it.
fn use_up(simulation: &mut Simulation, namespace: &str, more: usize) {
    for name in 0..10 + more {
        simulation.want(namespace, &format!("{namespace}-{name}"), Cause::New);
    }
    simulation.run(simulation.now + seconds(1));
    assert!(simulation.engine.counts(simulation.now).held >= more.saturating_sub(1));
}

#[test]
fn a_shared_session_is_fetched_by_a_namespace_with_budget() {
    for cause in [Cause::New, Cause::Change] {
        let mut simulation = Simulation::new(options());
        use_up(&mut simulation, "evil", 600);
        for name in 0..610 {
            simulation.handle(Event::Prioritized(key(&format!("evil-{name}"))));
        }
        simulation.want("evil", "billing", cause);
        simulation.run(simulation.now + seconds(1));
        assert!(
            !simulation.served.contains(&key("billing")),
            "evil has nothing left"
        );
        simulation.want("shop", "billing", Cause::New);
        simulation.run(simulation.now + seconds(1));
        assert!(simulation.served.contains(&key("billing")), "{cause:?}");
        // The shop has paid for this session and for no other.
        for name in 0..9 {
            simulation.want("shop", &format!("shop-{name}"), Cause::New);
        }
        simulation.run(simulation.now + MILLISECOND * 60);
        assert!(simulation.served.contains(&key("shop-8")));
    }
}

#[test]
fn the_first_namespace_to_recover_fetches_a_shared_session() {
    // In either order.
    for namespaces in [["evil", "shop"], ["shop", "evil"]] {
        let mut simulation = Simulation::new(options());
        use_up(&mut simulation, "evil", 500);
        use_up(&mut simulation, "shop", 3);
        for namespace in namespaces {
            simulation.want(namespace, "billing", Cause::New);
        }
        simulation.run(simulation.now + seconds(5));
        assert!(
            simulation.served.contains(&key("billing")),
            "{namespaces:?}"
        );
        assert!(simulation.engine.counts(simulation.now).held > 400);
        let calls = simulation
            .calls
            .iter()
            .filter(|(_, role)| role == "billing");
        assert_eq!(calls.count(), 1);
    }
}

#[test]
fn a_waiting_pod_prioritizes_a_session_in_every_namespace() {
    let mut simulation = Simulation::new(options());
    use_up(&mut simulation, "evil", 500);
    use_up(&mut simulation, "shop", 50);
    simulation.want("evil", "billing", Cause::New);
    simulation.want("shop", "billing", Cause::New);
    simulation.handle(Event::Prioritized(key("billing")));
    // A repeated event has no further effect.
    simulation.handle(Event::Prioritized(key("billing")));
    simulation.run(simulation.now + seconds(3));
    assert!(simulation.served.contains(&key("billing")));
}

#[test]
fn a_shared_session_waits_for_its_shortest_queue() {
    let mut simulation = Simulation::new(EngineOptions::for_cluster(4));
    for name in 0..3000 {
        simulation.want("batch", &format!("batch-{name}"), Cause::New);
    }
    simulation.want("batch", "billing", Cause::New);
    simulation.want("shop", "billing", Cause::New);
    simulation.run(simulation.now + seconds(1));
    assert!(simulation.served.contains(&key("billing")));
    assert!(simulation.engine.counts(simulation.now).prefetch > 2000);
    // It is in no queue twice.
    simulation.run_until_served(3001);
    assert_eq!(simulation.calls.len(), 3001);
    assert_eq!(simulation.engine.counts(simulation.now).prefetch, 0);
}

#[test]
fn a_new_pod_pays_its_own_lower_cost() {
    let mut simulation = Simulation::new(options());
    use_up(&mut simulation, "shop", 0);
    // A tenth of a bucket is refilled per second, and a change costs a whole one.
    simulation.want("shop", "billing", Cause::Change);
    simulation.run(simulation.now + seconds(1));
    assert!(!simulation.served.contains(&key("billing")));
    simulation.want("shop", "billing", Cause::New);
    simulation.run(simulation.now + seconds(2));
    assert!(simulation.served.contains(&key("billing")));
}

#[test]
fn a_retry_is_charged_to_the_namespace_of_the_change() {
    let mut engine = Engine::new(EngineOptions {
        change_cost: 1,
        ..options()
    });
    let want = |name: &str, namespace: &str| Event::Acquired {
        key: key(name),
        namespace: namespace.into(),
        cause: Cause::New,
    };
    assert_eq!(engine.handle(want("a", "shop"), at(0)), fetch("a"));
    engine.handle(want("a", "evil"), at(0));
    let change = |namespace: &str| Event::Changed {
        key: key("a"),
        namespace: namespace.into(),
    };
    for _ in 0..10 {
        engine.handle(Event::Failed(key("a"), FailureKind::Final), at(0));
        assert_eq!(engine.handle(change("evil"), at(0)), fetch("a"));
    }
    engine.handle(Event::Failed(key("a"), FailureKind::Final), at(0));
    assert_eq!(engine.handle(change("evil"), at(0)), [], "evil has no more");
    for name in 0..9 {
        let name = format!("shop-{name}");
        assert_eq!(engine.handle(want(&name, "shop"), at(0)), fetch(&name));
    }
    // A session that waits for the budget of `evil` is retried when another namespace changes
    // something.
    assert_eq!(engine.handle(change("payments"), at(0)), fetch("a"));
}

#[test]
fn a_fetch_is_paid_only_once() {
    let mut engine = Engine::new(EngineOptions {
        in_flight: 1,
        namespace_burst: 2,
        ..options()
    });
    let want = |name: &str, namespace: &str| Event::Acquired {
        key: key(name),
        namespace: namespace.into(),
        cause: Cause::New,
    };
    let done = |name: &str, now: i64| Event::Fetched(key(name), hour(now));
    for name in ["e1", "e2", "billing"] {
        engine.handle(want(name, "evil"), at(0));
    }
    assert_eq!(engine.handle(done("e1", 0), at(0)), fetch("e2"));
    assert_eq!(engine.handle(done("e2", 0), at(0)), [], "evil can't pay");
    assert_eq!(engine.handle(want("busy", "other"), at(0)), fetch("busy"));
    engine.handle(want("s1", "shop"), at(0));
    engine.handle(want("s2", "shop"), at(0));
    // `evil` pays, and only the call in flight delays the session when `shop` needs it as well.
    engine.handle(Event::Tick, at(1));
    engine.handle(want("billing", "shop"), at(1));
    assert_eq!(engine.counts(at(1)).held, 0);
    assert_eq!(engine.handle(done("busy", 1), at(1)), fetch("billing"));
    // `shop` still has its whole budget.
    assert_eq!(engine.handle(done("billing", 1), at(1)), fetch("s1"));
    assert_eq!(engine.handle(done("s1", 1), at(1)), fetch("s2"));
}
