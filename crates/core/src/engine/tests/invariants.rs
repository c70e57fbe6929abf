//! Invariants of the engine under arbitrary events.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Want(u8, u8, Cause),
    Release(u8),
    AccessRequest(u8),
    Change(u8, u8),
    Finish(u8),
    Fail(u8, FailureKind),
    Wait(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        Just(FailureKind::Final),
        Just(FailureKind::Throttled),
        Just(FailureKind::Temporary)
    ];
    let step = prop_oneof![
        (0..6u8, 0..3u8, any::<bool>()).prop_map(|(key, namespace, new)| {
            let cause = if new { Cause::New } else { Cause::Change };
            Step::Want(key, namespace, cause)
        }),
        (0..6u8).prop_map(Step::Release),
        (0..6u8).prop_map(Step::AccessRequest),
        (0..6u8, 0..3u8).prop_map(|(key, namespace)| Step::Change(key, namespace)),
        (0..6u8).prop_map(Step::Finish),
        (0..6u8, kind).prop_map(|(key, kind)| Step::Fail(key, kind)),
        (0..4000i64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    /// For any events: one call for each key, no more calls than allowed, none for an unneeded
    /// session, no needed session dropped, and nothing left behind at the end.
    #[test]
    fn invariants(steps in steps()) {
        let mut engine = Engine::new(EngineOptions {
            in_flight: 3,
            ahead: 2,
            calls_per_second: 5,
            namespace_burst: 2,
            namespace_rate: 0.5,
            change_cost: 3,
            ..EngineOptions::default()
        });
        let mut now = at(0);
        let mut users: HashMap<u8, usize> = HashMap::new();
        let mut flying: Vec<Arc<SessionKey>> = Vec::new();
        let namespace = |n: u8| Arc::<str>::from(format!("ns-{n}"));
        let name = |n: u8| key(&format!("r{n}"));
        for step in steps {
            let event = match step {
                Step::Want(n, of, cause) => {
                    *users.entry(n).or_default() += 1;
                    Event::Acquired { key: name(n), namespace: namespace(of), cause }
                }
                Step::Release(n) => match users.get_mut(&n) {
                    Some(count) if *count > 0 => { *count -= 1; Event::Released(name(n)) }
                    _ => continue,
                },
                Step::AccessRequest(n) => Event::Prioritized(name(n)),
                Step::Change(n, of) => {
                    Event::Changed { key: name(n), namespace: namespace(of) }
                }
                Step::Finish(n) | Step::Fail(n, _) => {
                    let Some(index) = flying.iter().position(|key| *key == name(n)) else { continue };
                    flying.remove(index);
                    match step {
                        Step::Fail(_, kind) => Event::Failed(name(n), kind),
                        _ => Event::Fetched(name(n), Validity { not_before: now, not_after: now + seconds(3600) }),
                    }
                }
                Step::Wait(wait) => { now += seconds(wait); Event::Tick }
            };
            for action in engine.handle(event, now) {
                match action {
                    Action::Fetch(key) => {
                        prop_assert!(!flying.contains(&key), "two calls for {key:?}");
                        flying.push(key);
                    }
                    Action::Forget(key) => {
                        let n = (0..6).find(|n| name(*n) == key).unwrap();
                        prop_assert_eq!(users.get(&n).copied().unwrap_or_default(), 0);
                        prop_assert!(!flying.contains(&key));
                    }
                }
            }
            prop_assert!(flying.len() <= 3);
            prop_assert_eq!(engine.in_flight, flying.len());
            check(&engine, now)?;
        }
        // Once STS responds, every needed session is eventually fetched.
        for round in 0..2000 {
            for key in std::mem::take(&mut flying) {
                let lifetime = Validity { not_before: now, not_after: now + seconds(3600) };
                for action in engine.handle(Event::Fetched(key, lifetime), now) {
                    if let Action::Fetch(key) = action { flying.push(key); }
                }
            }
            let wanted = engine.entries.values().filter(|entry| entry.users > 0);
            let served = |entry: &Entry| entry.lifetime.is_some_and(|lifetime| lifetime.is_valid(now));
            if wanted.into_iter().all(served) { break; }
            prop_assert!(round < 1999, "an entry never gets a session");
            now = engine.wake_at().unwrap_or(now).max(now);
            for action in engine.handle(Event::Tick, now) {
                if let Action::Fetch(key) = action { flying.push(key); }
            }
        }
        for (n, count) in users {
            for _ in 0..count { engine.handle(Event::Released(name(n)), now); }
        }
        for key in flying { engine.handle(Event::Failed(key, FailureKind::Temporary), now); }
        // Each round may start what is still queued; then all timers expire.
        for _ in 0..40 {
            now += seconds(4000);
            for action in engine.handle(Event::Tick, now) {
                prop_assert!(matches!(action, Action::Forget(_)), "{:?}", action);
            }
        }
        prop_assert_eq!(engine.counts(now).sessions, 0);
        prop_assert!(engine.timers.is_empty());
        prop_assert!(engine.idle.is_empty());
        prop_assert_eq!(engine.queues.len(), 0);
        prop_assert_eq!(engine.budgets.held(), 0);
    }
}

/// Checks that each entry is where its state indicates, and that the counters are correct.
fn check(engine: &Engine, now: Timestamp) -> Result<(), TestCaseError> {
    let count = |is: fn(&Next) -> bool| {
        let entries = engine.entries.values();
        entries.filter(|entry| is(&entry.next)).count()
    };
    let counts = engine.counts(now);
    prop_assert_eq!(
        count(|next| matches!(next, Next::At(..))),
        engine.timers.len()
    );
    let in_line = |of: bool| {
        let entries = engine.entries.values();
        let waiting = entries.filter(|entry| match entry.next {
            Next::Waiting { urgent, .. } => urgent == of,
            _ => false,
        });
        let placed = |entry: &&Entry| entry.payers.values().any(|payer| !payer.held);
        waiting.filter(placed).count()
    };
    prop_assert_eq!(in_line(true), counts.urgent);
    prop_assert_eq!(in_line(false), counts.prefetch);
    let waiting = count(|next| matches!(next, Next::Waiting { .. }));
    prop_assert_eq!(waiting, counts.urgent + counts.prefetch + counts.held);
    let payers = engine
        .entries
        .values()
        .flat_map(|entry| entry.payers.values());
    let held = payers.filter(|payer| payer.held).count();
    prop_assert_eq!(held, engine.budgets.held());
    for entry in engine.entries.values() {
        let waits = matches!(entry.next, Next::Waiting { .. });
        prop_assert_eq!(waits, !entry.payers.is_empty());
        // A fetch that one namespace has paid for is not held for another.
        if let Next::Waiting { paid: true, .. } = entry.next {
            prop_assert!(
                entry
                    .payers
                    .values()
                    .all(|payer| !payer.held && payer.debt <= 0.0)
            );
        }
    }
    Ok(())
}
