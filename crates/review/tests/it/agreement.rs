//! Admission and agents agree about every pod.

use std::collections::HashMap;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::select;
use rolegate_core::annotation::{AnnotationKeys, EXTERNAL_ID, MIRROR, ROLE};
use rolegate_core::decision::{Decision, ReservedRole};
use rolegate_core::labels::Labels;
use rolegate_core::layer::LayerId;
use rolegate_core::test_util::pod;
use rolegate_core::workload::{RoleRequest, Workload};
use serde_json::{Value, json};

use crate::world::{NOW, Rules};

const NAMES: &[&str] = &["annotations", "grants", "layers", "audit", "rego"];

static WORLDS: LazyLock<HashMap<&str, Rules>> = LazyLock::new(|| {
    let worlds = NAMES.iter().map(|name| {
        let mut rules = Rules::of(name);
        for set in [&mut rules.set, &mut rules.agent] {
            set.reserved_roles = vec![ReservedRole {
                account: None,
                name: "node".into(),
            }];
        }
        (*name, rules)
    });
    worlds.collect()
});

#[derive(Debug, Clone)]
struct Pod {
    world: &'static str,
    namespace: &'static str,
    account: Option<&'static str>,
    role: Option<String>,
    external_id: Option<String>,
    session_name: Option<String>,
    labels: Vec<(&'static str, &'static str)>,
    mirror: bool,
}

fn text(known: &'static [&'static str]) -> impl Strategy<Value = Option<String>> {
    let known = select(known).prop_map(|text| Some(text.to_owned()));
    prop_oneof![2 => Just(None), 5 => known, 1 => ".{0,30}".prop_map(Some)]
}

fn pods() -> impl Strategy<Value = Pod> {
    let namespaces = &[
        "shop",
        "kiam",
        "both",
        "bare",
        "broken",
        "defaulted",
        "misdefaulted",
        "blue",
        "red",
        "ungranted",
    ];
    let roles = &[
        "",
        " ",
        "shop-reader",
        " shop-writer\n",
        "kiam-a",
        "both-a",
        "both-c",
        "defaulted-x",
        "admin",
        "twice",
        "front",
        "named",
        "vendor-reader",
        "team-reader",
        "everyone",
        "node",
        "NODE",
        "/node",
        "arn:aws:iam::123456789012:role/shop-reader",
        "arn:aws:iam::210987654321:role/shop-reader",
    ];
    (
        select(NAMES),
        select(namespaces),
        select(&[None, Some("api"), Some("web")][..]),
        text(roles),
        text(&["customer-a", "customer-b", " ", "a b"]),
        text(&["shop.batch-1", "shop.web", "payments.api", "blue", " "]),
        proptest::collection::vec(
            select(&[("tier", "front"), ("tier", "back"), ("a", "b")][..]),
            0..3,
        ),
        proptest::bool::weighted(0.1),
    )
        .prop_map(
            |(world, namespace, account, role, external_id, session_name, labels, mirror)| Pod {
                world,
                namespace,
                account,
                role,
                external_id,
                session_name,
                labels,
                mirror,
            },
        )
}

impl Pod {
    fn object(&self) -> Value {
        let mut annotations = json!({});
        let keys = AnnotationKeys::default();
        for (key, value) in [
            (&*keys.role, &self.role),
            (&*keys.external_id, &self.external_id),
            ("iam.amazonaws.com/session-name", &self.session_name),
        ] {
            if let Some(value) = value {
                annotations[key] = json!(value);
            }
        }
        if self.mirror {
            annotations[MIRROR] = json!("hash");
        }
        let labels: std::collections::BTreeMap<_, _> = self.labels.iter().copied().collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "app", "annotations": annotations, "labels": labels},
            "spec": {"serviceAccountName": self.account, "containers": [{"name": "app"}]},
        })
    }

    /// Returns the annotations that rules may read.
    fn annotations(&self) -> Labels {
        let all = [(ROLE, &self.role), (EXTERNAL_ID, &self.external_id)];
        let all = all.into_iter();
        all.filter_map(|(key, value)| Some((key, value.as_deref()?)))
            .collect()
    }

    /// Returns the workload as an agent knows it.
    fn workload(&self) -> Workload {
        let given = |text: &Option<String>| {
            let text = text.as_deref().map(str::trim);
            text.filter(|text| !text.is_empty()).map(Into::into)
        };
        Workload {
            namespace: self.namespace.into(),
            service_account: self.account.unwrap_or("default").into(),
            mirror: self.mirror,
            role_request: RoleRequest {
                role: self.role.as_deref().map(|role| role.trim().into()),
                external_id: given(&self.external_id),
                session_name: given(&self.session_name),
            },
            labels: self.labels.iter().copied().collect(),
            annotations: self.annotations(),
            ..pod(None)
        }
    }
}

fn review(namespace: &str, object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u", "operation": "CREATE", "name": "app", "namespace": namespace,
            "kind": {"group": "", "version": "v1", "kind": "Pod"}, "object": object,
            "userInfo": {"username": "jane"},
        },
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn admission_and_agents_agree(pod in pods()) {
        let rules = &WORLDS[pod.world];
        let outcome = rules.validate(&review(pod.namespace, &pod.object()));
        let decision = rules.agent.decide(&pod.workload(), NOW);
        let names_none = pod.role.as_deref().is_none_or(|role| role.trim().is_empty());
        if pod.mirror && names_none {
            // A kubelet mirrors static pods whatever admission decides; agents give them nothing.
            prop_assert!(!matches!(decision, Decision::Allow { .. }), "{decision:?}");
            return Ok(());
        }
        match decision {
            Decision::NoRole => {
                prop_assert!(outcome.is_allowed() && outcome.warnings.is_empty(), "{outcome:?}");
            }
            Decision::Allow { audited, .. } => {
                prop_assert!(outcome.is_allowed(), "{outcome:?}");
                prop_assert_eq!(outcome.warnings.len(), audited.len());
            }
            Decision::Deny(denial) => {
                let mut layers = outcome.violations.iter().map(|violation| violation.denied_by);
                if denial.denied_by == LayerId::Rego.into() {
                    // Admission evaluates policies last, and reports them in addition to other
                    // violations.
                    prop_assert!(layers.any(|layer| layer == LayerId::Rego.into()), "{outcome:?}");
                } else {
                    prop_assert_eq!(layers.next(), Some(denial.denied_by.into()));
                }
            }
            Decision::Pending => {
                prop_assert_eq!(outcome.undecided.as_ref(), Some(&rolegate_review::Undecided::Namespace(pod.namespace.into())));
                prop_assert!(!outcome.is_allowed());
            }
        }
    }
}
