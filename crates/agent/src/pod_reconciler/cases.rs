//! The shared cases at the agent: an existing pod gets what admission decides.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use rolegate_authorizer::authorizer::Authorizer;
use rolegate_authorizer::pod::Authorization;
use rolegate_authorizer::reconciler::Reconciler;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::engine::EngineOptions;
use rolegate_core::session::{Credentials, Failure, SessionKey};
use rolegate_core::workload::{Change, Update};
use rolegate_inventory::offline::{OfflineOptions, load};
use rolegate_kube::workloads;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::Readiness;
use rolegate_sessions::{AssumeRole, SessionMetrics, Sessions};
use rolegate_testkit::cases::{self, AgentResult, Case};
use serde_json::{Value, json};

use super::{PodReconciler, PodReconcilerParts};
use crate::address_verifier::AddressVerifier;
use crate::metrics::AgentMetrics;
use crate::pod_table::{Owner, PodTable};

/// An STS client that is never called, since the driver does not run.
struct PendingSts;

impl AssumeRole for PendingSts {
    async fn assume_role(&self, _: &SessionKey) -> Result<Credentials, Failure> {
        std::future::pending().await
    }
}

/// Returns what the pod of a case gets from the agent.
fn authorization(case: &Case) -> Option<AgentResult> {
    let options = OfflineOptions {
        point: EnforcementPoint::Agent,
        ..OfflineOptions::default()
    };
    let offline = load(&case.world.documents, options).unwrap();
    let registry = &mut Registry::default();
    let (sessions, _) = Sessions::new(
        PendingSts,
        EngineOptions::default(),
        Clock::system(),
        SessionMetrics::register(registry),
    );
    let pod_table = Arc::new(PodTable::default());
    let authorizer = Authorizer::new(offline.writer.rules(), sessions, Clock::system());
    let parts = PodReconcilerParts {
        pod_table: pod_table.clone(),
        authorizer: authorizer.clone(),
        metrics: AgentMetrics::register(registry),
        verifier: AddressVerifier::default(),
        writer: offline.writer,
    };
    let mut pod_reconciler = PodReconciler::new(parts, &Readiness::new());

    let mut pod = case.subject().clone();
    let metadata = pod.get_mut("metadata").and_then(Value::as_object_mut)?;
    metadata.insert("uid".into(), "uid-1".into());
    metadata.insert("namespace".into(), case.namespace().into());
    metadata.entry("name").or_insert_with(|| "generated".into());
    let fields = pod.as_object_mut()?;
    fields.insert(
        "status".into(),
        json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}),
    );
    let workload = workloads::read(&pod, &AnnotationKeys::default()).ok()?;
    let (mirror, host) = (workload.mirror, workload.host_network);
    pod_reconciler.update(Update::Workloads(Change::Snapshot(vec![workload])));
    let Some(Owner::Pod(entry)) = pod_table.owner("10.0.0.1".parse().unwrap()) else {
        // No pod owns its address, so there is neither a denial nor a role.
        assert!(mirror || host, "{}: the pod owns no address", case.name);
        assert_ne!(case.expect.agent, Some(AgentResult::Allow), "{}", case.name);
        return case.expect.agent;
    };
    Some(
        match &authorizer
            .authorization(&entry, authorizer.now())
            .authorization
        {
            Authorization::Allowed(_) => AgentResult::Allow,
            Authorization::Denied { .. } => AgentResult::Deny,
            Authorization::NoRole => AgentResult::None,
            Authorization::Pending => return None,
        },
    )
}

#[test]
fn doors_say_what_the_table_of_cases_says() {
    let cases = cases::load_all().unwrap();
    let mut wrong = Vec::new();
    let mut asked = 0;
    for case in cases.iter().filter(|case| case.kind() == "Pod") {
        let Some(expected) = case.expect.agent else {
            continue;
        };
        asked += 1;
        let found = authorization(case);
        if found != Some(expected) {
            wrong.push(format!(
                "{}, {}: {found:?} instead of {expected:?}",
                case.file, case.name
            ));
        }
    }
    assert!(asked > 40, "only {asked} cases say what doors do");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
