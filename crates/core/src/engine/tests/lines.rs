//! What waits in line: fair, paced, in order, and never dropped. STS is simulated, and so is time.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::*;

pub(super) const MILLISECOND: SignedDuration = SignedDuration::from_millis(1);

/// An engine, and an STS that answers after a while.
pub(super) struct Lab {
    pub(super) engine: Engine,
    pub(super) now: Timestamp,
    latency: SignedDuration,
    /// What STS throttles beyond, calls in a second.
    quota: Option<usize>,
    flying: BTreeMap<(Timestamp, usize), (Arc<SessionKey>, bool)>,
    /// When each call was made, and for which role.
    pub(super) calls: Vec<(Timestamp, String)>,
    pub(super) served: HashSet<Arc<SessionKey>>,
}

impl Lab {
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
        self.handle(Event::Wanted {
            key,
            namespace,
            cause,
        });
    }

    /// Lets time pass until `until`.
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
                    let life = Life {
                        from: self.now - self.latency,
                        until: self.now + seconds(3600),
                    };
                    self.handle(Event::Fetched(key, life));
                }
            } else {
                self.handle(Event::Tick);
            }
        }
    }

    /// Runs until `count` sessions are there, and tells the seconds that it took.
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
    let mut lab = Lab::new(EngineOptions::of_cluster(64).without_pace());
    for pod in 0..5000 {
        lab.want("batch", &format!("r{pod}"), Cause::New);
    }
    let waiting = lab.engine.counts(lab.now);
    assert_eq!(waiting.in_flight + waiting.prefetch, 5000);
    let took = lab.run_until_served(5000);
    assert!(took <= 6.0, "{took}");
    assert_eq!(lab.calls.len(), 5000);
}

#[test]
fn calls_a_second_are_limited_and_all_are_served_at_that_pace() {
    let mut lab = Lab::new(EngineOptions::of_cluster(64));
    for pod in 0..5000 {
        lab.want(&format!("ns-{}", pod % 40), &format!("r{pod}"), Cause::New);
    }
    lab.run(at(5));
    let counts = lab.engine.counts(lab.now);
    assert_eq!(counts.rate, Some(200.0));
    assert_eq!(counts.oldest_wait, seconds(5));
    let took = lab.run_until_served(5000);
    assert!((19.0..21.0).contains(&took), "{took}");
    assert!(lab.most_calls_in_a_second() <= 220);
    assert_eq!(lab.engine.counts(lab.now).oldest_wait, SignedDuration::ZERO);
}

#[test]
fn throttling_slows_the_line_down_and_loses_nothing() {
    let mut lab = Lab::new(EngineOptions::of_cluster(64));
    lab.quota = Some(60);
    for pod in 0..1000 {
        lab.want(&format!("ns-{pod}"), &format!("r{pod}"), Cause::New);
    }
    lab.run(at(3));
    assert!(lab.engine.counts(lab.now).rate.unwrap() < 120.0);
    lab.run_until_served(1000);
    // Not a storm: a retry for each that was throttled, and few were.
    assert!(lab.calls.len() < 2000, "{}", lab.calls.len());
    lab.quota = None;
    lab.run(lab.now + seconds(31));
    lab.handle(Event::Tick);
    assert_eq!(lab.engine.counts(lab.now).rate, Some(200.0));
}

#[test]
fn who_asks_is_served_before_thousands_that_nobody_waits_for() {
    let mut lab = Lab::new(EngineOptions::of_cluster(64));
    for pod in 0..5000 {
        lab.want("batch", &format!("r{pod}"), Cause::New);
    }
    lab.run(at(1));
    lab.want("shop", "checkout", Cause::New);
    lab.handle(Event::Asked(key("checkout")));
    assert_eq!(lab.engine.counts(lab.now).urgent, 1);
    lab.run(lab.now + MILLISECOND * 60);
    assert!(lab.served.contains(&key("checkout")));
    // The same in a namespace that waits for its allowance: its own order changes.
    for flip in 0..200 {
        lab.want("flipper", &format!("f{flip}"), Cause::Change);
    }
    lab.run(at(10));
    assert!(lab.engine.counts(lab.now).held > 100);
    lab.handle(Event::Asked(key("f199")));
    lab.run(at(13));
    assert!(lab.served.contains(&key("f199")));
    assert!(!lab.served.contains(&key("f198")));
}

#[test]
fn threat_18_a_clusters_allowance_is_no_larger_for_changes_than_a_nodes() {
    for options in [EngineOptions::of_node(64), EngineOptions::of_cluster(64)] {
        let mut lab = Lab::new(options);
        for flip in 0..6000 {
            let role = format!("r{flip}");
            lab.want("flipper", &role, Cause::Change);
            lab.run(lab.now + MILLISECOND * 10);
            lab.handle(Event::Released(key(&role)));
        }
        // A minute of flipping: sixty at once, and one every other second.
        assert!((60..=92).contains(&lab.calls.len()), "{}", lab.calls.len());
    }
}

#[test]
fn a_namespace_without_allowance_is_still_refreshed() {
    let mut lab = Lab::new(EngineOptions::of_node(64));
    lab.want("flipper", "first", Cause::New);
    lab.run(at(1));
    for flip in 0..3000 {
        lab.want("flipper", &format!("r{flip}"), Cause::Change);
    }
    lab.run(at(1800));
    assert!(lab.engine.counts(lab.now).held > 1000);
    let calls = lab.calls.iter().filter(|(_, role)| role == "first");
    assert_eq!(calls.count(), 2);
}

#[test]
fn what_leaves_the_line_leaves_nothing_behind() {
    let mut lab = Lab::new(EngineOptions::of_cluster(4));
    for round in 0..3 {
        for pod in 0..1000 {
            let role = format!("r{round}-{pod}");
            lab.want("batch", &role, Cause::Change);
            if pod % 2 == 0 {
                lab.handle(Event::Asked(key(&role)));
            }
        }
        for pod in 0..1000 {
            lab.handle(Event::Released(key(&format!("r{round}-{pod}"))));
        }
    }
    let counts = lab.engine.counts(lab.now);
    assert_eq!((counts.urgent, counts.prefetch, counts.held), (0, 0, 0));
    assert_eq!(counts.sessions, counts.in_flight);
}

proptest! {
    /// However much each namespace has in line, and however it is asked for: between two calls
    /// for a namespace that has more in the same line, each other one has one call at the most.
    #[test]
    fn namespaces_take_turns(
        wanted in prop::collection::vec((0..6usize, any::<bool>()), 1..300),
        in_flight in 1..8usize,
        rate in prop_oneof![Just(0u32), Just(50)],
    ) {
        let options = EngineOptions {
            ahead: in_flight,
            calls_per_second: rate,
            ..EngineOptions::of_cluster(in_flight)
        };
        let mut lab = Lab::new(options);
        // What is wanted while all calls are busy with something else stands in line together.
        for busy in 0..in_flight {
            lab.want("busy", &format!("busy-{busy}"), Cause::New);
        }
        let mut left: HashMap<(bool, usize), usize> = HashMap::new();
        for (place, (namespace, urgent)) in wanted.iter().enumerate() {
            let role = format!("{namespace}-{urgent}-{place}");
            lab.want(&format!("ns-{namespace}"), &role, Cause::New);
            if *urgent {
                lab.handle(Event::Asked(key(&role)));
            }
            *left.entry((*urgent, *namespace)).or_default() += 1;
        }
        lab.run_until_served(wanted.len() + in_flight);
        let mut passed: HashMap<(bool, usize), Vec<usize>> = HashMap::new();
        for (_, role) in lab.calls.iter().filter(|(_, role)| !role.starts_with("busy")) {
            let mut parts = role.split('-');
            let namespace: usize = parts.next().unwrap().parse().unwrap();
            let urgent = parts.next() == Some("true");
            prop_assert!(urgent || left.iter().all(|((urgent, _), left)| !urgent || *left == 0));
            *left.get_mut(&(urgent, namespace)).unwrap() -= 1;
            for ((_, waiting), _) in left.iter().filter(|(line, left)| line.0 == urgent && **left > 0) {
                if *waiting != namespace {
                    let passed = passed.entry((urgent, *waiting)).or_default();
                    prop_assert!(!passed.contains(&namespace), "{namespace} goes before {waiting} twice");
                    passed.push(namespace);
                }
            }
            passed.remove(&(urgent, namespace));
        }
    }
}
