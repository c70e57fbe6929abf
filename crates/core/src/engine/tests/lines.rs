//! Tests of the queue: fair, rate-limited, ordered, and without losses. STS and time are simulated.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::*;

pub(super) const MILLISECOND: SignedDuration = SignedDuration::from_millis(1);

/// An engine, and an STS that responds after a delay.
pub(super) struct Simulation {
    pub(super) engine: Engine,
    pub(super) now: Timestamp,
    latency: SignedDuration,
    /// STS throttles above this number of calls per second.
    quota: Option<usize>,
    flying: BTreeMap<(Timestamp, usize), (Arc<SessionKey>, bool)>,
    /// The time and role of each call.
    pub(super) calls: Vec<(Timestamp, String)>,
    pub(super) served: HashSet<Arc<SessionKey>>,
}

impl Simulation {
    pub(super) fn new(options: EngineOptions) -> Self {
        Self {
            engine: Engine::new(options),
            now: at(0),
            latency: MILLISECOND * 50,
            quota: None,
            flying: BTreeMap::new(),
            calls: Vec::new(),
            served: HashSet::new(),
        }
    }

    pub(super) fn handle(&mut self, event: Event) {
        for action in self.engine.handle(event, self.now) {
            if let Action::Fetch(key) = action {
                let recent = self.calls_since(self.now - seconds(1));
                let throttled = self.quota.is_some_and(|quota| recent >= quota);
                self.calls.push((self.now, key.role.name().to_owned()));
                let end = (self.now + self.latency, self.calls.len());
                self.flying.insert(end, (key, throttled));
            }
        }
    }

    pub(super) fn want(&mut self, namespace: &str, role: &str, cause: Cause) {
        let (key, namespace) = (key(role), namespace.into());
        self.handle(Event::Acquired {
            key,
            namespace,
            cause,
        });
    }

    /// Advances the time to `until`.
    pub(super) fn run(&mut self, until: Timestamp) {
        loop {
            let ends = self.flying.first_key_value().map(|((end, _), _)| *end);
            let next = ends.into_iter().chain(self.engine.wake_at()).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            if ends == Some(next) {
                let (_, (key, throttled)) = self.flying.pop_first().unwrap();
                if throttled {
                    self.handle(Event::Failed(key, FailureKind::Throttled));
                } else {
                    self.served.insert(key.clone());
                    let lifetime = Validity {
                        not_before: self.now - self.latency,
                        not_after: self.now + seconds(3600),
                    };
                    self.handle(Event::Fetched(key, lifetime));
                }
            } else {
                self.handle(Event::Tick);
            }
        }
    }

    /// Runs until `count` sessions are fetched, and returns the time taken in seconds.
    pub(super) fn run_until_served(&mut self, count: usize) -> f64 {
        let began = self.now;
        while self.served.len() < count && self.now < began + seconds(600) {
            self.run(self.now + MILLISECOND * 10);
        }
        assert_eq!(self.served.len(), count);
        began.duration_until(self.now).as_secs_f64()
    }

    fn calls_since(&self, since: Timestamp) -> usize {
        let calls = self.calls.iter().rev();
        calls.take_while(|(time, _)| *time > since).count()
    }

    fn most_calls_in_a_second(&self) -> usize {
        let mut first = 0;
        let mut most = 0;
        for (last, (time, _)) in self.calls.iter().enumerate() {
            while self.calls[first].0 + seconds(1) <= *time {
                first += 1;
            }
            most = most.max(last - first + 1);
        }
        most
    }
}

#[test]
fn pain_09_five_thousand_pods_of_one_namespace_are_all_served_at_the_pace_of_calls_in_flight() {
    let mut simulation = Simulation::new(EngineOptions::for_cluster(64).without_rate_limit());
    for pod in 0..5000 {
        simulation.want("batch", &format!("r{pod}"), Cause::New);
    }
    let waiting = simulation.engine.counts(simulation.now);
    assert_eq!(waiting.in_flight + waiting.prefetch, 5000);
    let took = simulation.run_until_served(5000);
    assert!(took <= 6.0, "{took}");
    assert_eq!(simulation.calls.len(), 5000);
}

#[test]
fn calls_per_second_are_limited_and_none_is_lost() {
    let mut simulation = Simulation::new(EngineOptions::for_cluster(64));
    for pod in 0..5000 {
        simulation.want(&format!("ns-{}", pod % 40), &format!("r{pod}"), Cause::New);
    }
    simulation.run(at(5));
    let counts = simulation.engine.counts(simulation.now);
    assert_eq!(counts.rate, Some(200.0));
    assert_eq!(counts.oldest_wait, seconds(5));
    let took = simulation.run_until_served(5000);
    assert!((19.0..21.0).contains(&took), "{took}");
    assert!(simulation.most_calls_in_a_second() <= 220);
    assert_eq!(
        simulation.engine.counts(simulation.now).oldest_wait,
        SignedDuration::ZERO
    );
}

#[test]
fn throttling_slows_the_queue_without_loss() {
    let mut simulation = Simulation::new(EngineOptions::for_cluster(64));
    simulation.quota = Some(60);
    for pod in 0..1000 {
        simulation.want(&format!("ns-{pod}"), &format!("r{pod}"), Cause::New);
    }
    simulation.run(at(3));
    assert!(simulation.engine.counts(simulation.now).rate.unwrap() < 120.0);
    simulation.run_until_served(1000);
    // Retries are bounded: one for each throttled call, and few were throttled.
    assert!(simulation.calls.len() < 2000, "{}", simulation.calls.len());
    simulation.quota = None;
    simulation.run(simulation.now + seconds(31));
    simulation.handle(Event::Tick);
    assert_eq!(simulation.engine.counts(simulation.now).rate, Some(200.0));
}

#[test]
fn a_waiting_pod_precedes_thousands_of_prefetches() {
    let mut simulation = Simulation::new(EngineOptions::for_cluster(64));
    for pod in 0..5000 {
        simulation.want("batch", &format!("r{pod}"), Cause::New);
    }
    simulation.run(at(1));
    simulation.want("shop", "checkout", Cause::New);
    simulation.handle(Event::Prioritized(key("checkout")));
    assert_eq!(simulation.engine.counts(simulation.now).urgent, 1);
    simulation.run(simulation.now + MILLISECOND * 60);
    assert!(simulation.served.contains(&key("checkout")));
    // The same in a namespace that waits for its budget, where flipping changes only its own order.
    for flip in 0..200 {
        simulation.want("flipper", &format!("f{flip}"), Cause::Change);
    }
    simulation.run(at(10));
    assert!(simulation.engine.counts(simulation.now).held > 100);
    simulation.handle(Event::Prioritized(key("f199")));
    simulation.run(at(13));
    assert!(simulation.served.contains(&key("f199")));
    assert!(!simulation.served.contains(&key("f198")));
}

#[test]
fn threat_18_a_clusters_allowance_is_no_larger_for_changes_than_a_nodes() {
    for options in [EngineOptions::for_node(64), EngineOptions::for_cluster(64)] {
        let mut simulation = Simulation::new(options);
        for flip in 0..6000 {
            let role = format!("r{flip}");
            simulation.want("flipper", &role, Cause::Change);
            simulation.run(simulation.now + MILLISECOND * 10);
            simulation.handle(Event::Released(key(&role)));
        }
        // A minute of flipping: sixty fetches at once, and one every other second.
        assert!(
            (60..=92).contains(&simulation.calls.len()),
            "{}",
            simulation.calls.len()
        );
    }
}

#[test]
fn a_namespace_without_allowance_is_still_refreshed() {
    let mut simulation = Simulation::new(EngineOptions::for_node(64));
    simulation.want("flipper", "first", Cause::New);
    simulation.run(at(1));
    for flip in 0..3000 {
        simulation.want("flipper", &format!("r{flip}"), Cause::Change);
    }
    simulation.run(at(1800));
    assert!(simulation.engine.counts(simulation.now).held > 1000);
    let calls = simulation.calls.iter().filter(|(_, role)| role == "first");
    assert_eq!(calls.count(), 2);
}

#[test]
fn leaving_the_queue_leaves_nothing_behind() {
    let mut simulation = Simulation::new(EngineOptions::for_cluster(4));
    for round in 0..3 {
        for pod in 0..1000 {
            let role = format!("r{round}-{pod}");
            simulation.want("batch", &role, Cause::Change);
            if pod % 2 == 0 {
                simulation.handle(Event::Prioritized(key(&role)));
            }
        }
        for pod in 0..1000 {
            simulation.handle(Event::Released(key(&format!("r{round}-{pod}"))));
        }
    }
    let counts = simulation.engine.counts(simulation.now);
    assert_eq!((counts.urgent, counts.prefetch, counts.held), (0, 0, 0));
    assert_eq!(counts.sessions, counts.in_flight);
}

proptest! {
    /// For any queues and any order of events: between two calls for a namespace with more in the
    /// same queue, every other namespace has at most one call.
    #[test]
    fn namespaces_take_turns(
        wanted in prop::collection::vec((0..6usize, any::<bool>()), 1..300),
        in_flight in 1..8usize,
        rate in prop_oneof![Just(0u32), Just(50)],
    ) {
        let options = EngineOptions {
            ahead: in_flight,
            calls_per_second: rate,
            ..EngineOptions::for_cluster(in_flight)
        };
        let mut simulation = Simulation::new(options);
        // Sessions needed while all calls are in use are queued together.
        for busy in 0..in_flight {
            simulation.want("busy", &format!("busy-{busy}"), Cause::New);
        }
        let mut left: HashMap<(bool, usize), usize> = HashMap::new();
        for (index, (namespace, urgent)) in wanted.iter().enumerate() {
            let role = format!("{namespace}-{urgent}-{index}");
            simulation.want(&format!("ns-{namespace}"), &role, Cause::New);
            if *urgent {
                simulation.handle(Event::Prioritized(key(&role)));
            }
            *left.entry((*urgent, *namespace)).or_default() += 1;
        }
        simulation.run_until_served(wanted.len() + in_flight);
        let mut passed: HashMap<(bool, usize), Vec<usize>> = HashMap::new();
        for (_, role) in simulation.calls.iter().filter(|(_, role)| !role.starts_with("busy")) {
            let mut parts = role.split('-');
            let namespace: usize = parts.next().unwrap().parse().unwrap();
            let urgent = parts.next() == Some("true");
            prop_assert!(urgent || left.iter().all(|((urgent, _), left)| !urgent || *left == 0));
            *left.get_mut(&(urgent, namespace)).unwrap() -= 1;
            for ((_, waiting), _) in left.iter().filter(|(line, left)| line.0 == urgent && **left > 0) {
                if *waiting != namespace {
                    let passed = passed.entry((urgent, *waiting)).or_default();
                    prop_assert!(!passed.contains(&namespace), "{namespace} overtakes {waiting} twice");
                    passed.push(namespace);
                }
            }
            passed.remove(&(urgent, namespace));
        }
    }
}
