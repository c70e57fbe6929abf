//! Threat 34: a cached decision always equals a new one.

use proptest::prelude::*;

use super::*;
use crate::arn::BaseArn;
use crate::attribution::{Attribution, AttributionRules, SourceIdentity, WorkloadTags};
use crate::decision::ReservedRole;
use crate::grant::{Grant, SessionRules, Subject};
use crate::layer::grants::GrantsLayer;
use crate::layer::namespace::NamespaceLayer;
use crate::namespace::Namespace;
use crate::needs::Keys;
use crate::pattern::PatternFormat;
use crate::selector::Selector;
use crate::workload::Phase;

const NAMESPACES: [&str; 3] = ["shop", "billing", "unknown"];
const NAMES: [&str; 2] = ["one", "two"];

/// A layer whose verdict depends on everything that it declares to read, and on nothing else.
#[derive(Debug, Clone, Copy)]
struct Reader(WorkloadFields);

impl Layer for Reader {
    fn id(&self) -> LayerId {
        LayerId::Rego
    }

    fn evaluate(&self, request: &AccessRequest<'_>) -> Verdict {
        let WorkloadFields {
            labels,
            pod,
            identity,
        } = self.0;
        let workload = request.workload;
        let mut seen = String::new();
        if labels {
            seen += &format!("{:?}", workload.labels);
        }
        if pod || identity {
            seen += &format!("{} {}", workload.name, workload.uid);
        }
        if identity {
            let (node, host) = (&workload.node, workload.host_network);
            seen += &format!("{node:?} {host} {:?}", workload.annotations);
        }
        match crate::session_name::fnv1a(&seen) % 3 {
            0 => Verdict::deny(seen, "seen"),
            _ => Verdict::allow(seen),
        }
    }

    fn reads(&self) -> WorkloadFields {
        self.0
    }

    fn lacks(&self, request: &AccessRequest<'_>) -> bool {
        let lack = |values: &Labels| !values.cover(&Keys::All);
        let (labels, annotations) = (&request.workload.labels, &request.workload.annotations);
        self.0.labels && lack(labels) || self.0.identity && lack(annotations)
    }
}

fn pairs() -> impl Strategy<Value = Labels> {
    let small = |key: &'static str, value: &'static str| Just([(key, value)].into_iter().collect());
    prop_oneof![
        3 => Just(Labels::default()),
        2 => small("app", "one"),
        2 => small("app", "two"),
        2 => Just([("app", "x".repeat(40_000))].into_iter().collect()),
        // The labels that a source stores before it knows that rules read more.
        1 => Just(Labels::from_object([("app", "one")], &Keys::default())),
    ]
}

fn name() -> impl Strategy<Value = Arc<str>> {
    prop::sample::select(&NAMES[..]).prop_map(Into::into)
}

fn maybe(texts: &'static [&'static str]) -> impl Strategy<Value = Option<Arc<str>>> {
    prop::option::of(prop::sample::select(texts).prop_map(Into::into))
}

prop_compose! {
    /// Generates workloads with few differences, so that many are identical to some rules.
    fn workload()(
        namespace in prop::sample::select(&NAMESPACES[..]),
        (name, uid, service_account) in (name(), name(), name()),
        (node, host_network, mirror) in (maybe(&NAMES), any::<bool>(), prop::bool::weighted(0.1)),
        role in maybe(&["", "reader", "writer", "node", "arn:aws:iam::210987654321:role/far", "no role"]),
        external_id in maybe(&["id-1", "id-2", "!"]),
        session_name in maybe(&["blue", "shop.blue", "billing.blue"]),
        (labels, annotations) in (pairs(), pairs()),
        phase in prop::sample::select(&[Phase::Pending, Phase::Running][..]),
    ) -> Workload {
        Workload {
            namespace: namespace.into(),
            name,
            uid,
            service_account,
            node,
            host_network,
            mirror,
            phase,
            addresses: Vec::new(),
            role_request: RoleRequest { role, external_id, session_name },
            labels,
            annotations,
        }
    }
}

fn tags() -> impl Strategy<Value = WorkloadTags> {
    prop::sample::select(
        &[
            WorkloadTags::None,
            WorkloadTags::Workload,
            WorkloadTags::Pod,
        ][..],
    )
}

fn source() -> impl Strategy<Value = SourceIdentity> {
    prop::sample::select(&[SourceIdentity::None, SourceIdentity::ServiceAccount][..])
}

prop_compose! {
    fn grant(number: usize)(
        namespace in prop::sample::select(&["*", "shop", "billing"][..]),
        account in prop::option::of(prop::sample::select(&NAMES[..])),
        label in prop::option::of(prop::sample::select(&NAMES[..])),
        role in prop::sample::select(&["*", "reader", "arn:aws:iam::*:role/*"][..]),
        ids in prop::sample::subsequence(&["id-1", "id-2"][..], 0..=2),
        (tags, transitive, source) in (
            prop::option::of(tags()), prop::option::of(any::<bool>()), prop::option::of(source()),
        ),
    ) -> Grant {
        Grant {
            name: format!("grant-{number}").into(),
            roles: vec![role.into()],
            subjects: vec![Subject {
                namespaces: vec![namespace.into()],
                service_accounts: account.into_iter().map(Into::into).collect(),
                pod_selector: label.map(|value| Selector {
                    labels: [("app", value)].into_iter().collect(),
                    ..Selector::default()
                }),
                ..Subject::default()
            }],
            external_ids: ids.into_iter().map(Into::into).collect(),
            session: SessionRules {
                attribution: AttributionRules { tags, transitive, source },
                ..SessionRules::default()
            },
            ..Grant::default()
        }
    }
}

fn grants() -> impl Strategy<Value = Vec<Grant>> {
    (0..4usize).prop_flat_map(|count| (0..count).map(grant).collect::<Vec<_>>())
}

fn mode() -> impl Strategy<Value = Mode> {
    prop::sample::select(&[Mode::Enforce, Mode::Audit, Mode::Off][..])
}

prop_compose! {
    fn rules()(
        grants in grants(),
        modes in (mode(), mode(), mode()),
        (labels, pod, identity) in any::<(bool, bool, bool)>(),
        scope in prop::sample::select(
            &[SessionScope::Workload, SessionScope::Pod, SessionScope::Role][..]
        ),
        (tags, transitive, source) in (tags(), any::<bool>(), source()),
        (cluster, missing) in (maybe(&["prod"]), prop::option::weighted(0.1, Just("gone"))),
        default_role in any::<bool>(),
        namespaces in prop::collection::vec((maybe(&["[\"reader\"]", "[\"*\"]", "["]), pairs()), 2),
    ) -> RuleSet {
        let base = BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap();
        let layers: [(Arc<dyn Layer>, Mode); 3] = [
            (Arc::new(NamespaceLayer::default()), modes.0),
            (Arc::new(GrantsLayer::new(&grants, Some(&base))), modes.1),
            (Arc::new(Reader(WorkloadFields { labels, pod, identity })), modes.2),
        ];
        let layers = layers.into_iter().filter(|(_, mode)| *mode != Mode::Off);
        let namespaces = NAMESPACES.iter().zip(namespaces).map(|(name, (allowed_roles, labels))| {
            let namespace = Namespace {
                name: (*name).into(),
                allowed_roles,
                labels,
                ..Namespace::default()
            };
            let compiled = NamespaceRules::new(&namespace, Some(&base), PatternFormat::Glob);
            (Arc::from(*name), Arc::new(compiled))
        });
        RuleSet {
            namespaces: Arc::new(namespaces.collect()),
            layers: layers.map(|(layer, mode)| ActiveLayer { layer, mode }).collect(),
            default_role: default_role.then(|| crate::arn::resolve("fallback", Some(&base)).unwrap()),
            reserved_roles: vec![ReservedRole::parse("node").unwrap()],
            base: Some(base),
            scope,
            attribution: Attribution { tags, transitive, source },
            cluster,
            missing: missing.map(Into::into),
            session_seconds: 3600,
            ..RuleSet::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn threat_34_a_kept_decision_is_the_one_that_would_be_made(
        all in prop::collection::vec(rules(), 1..3),
        workloads in prop::collection::vec(workload(), 2..40),
    ) {
        let cache = DecisionCache::default();
        for (generation, mut rules) in (1..).zip(all) {
            rules.generation = generation;
            for workload in &workloads {
                let made = rules.decide(workload, Timestamp::UNIX_EPOCH);
                let kept = cache.decide(&rules, workload, Timestamp::UNIX_EPOCH);
                prop_assert_eq!(kept, made, "{:?}", workload);
            }
        }
    }
}
