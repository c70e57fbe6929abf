//! The table of cases at the door: what a pod that exists gets is what the gate says of it.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use rolegate_aws::sessions::{AssumeRole, SessionMetrics, Sessions};
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::engine::EngineOptions;
use rolegate_core::session::{Credentials, Failure, SessionKey};
use rolegate_core::workload::{Change, Update};
use rolegate_kube::workloads;
use rolegate_rules::keeper::Point;
use rolegate_rules::offline::{OfflineOptions, load};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::Readiness;
use rolegate_standing::decider::Decider;
use rolegate_standing::resident::Standing;
use rolegate_testkit::cases::{self, Case, Door};
use serde_json::{Value, json};

use super::{Director, DirectorParts};
use crate::guard::Guard;
use crate::metrics::AgentMetrics;
use crate::picture::{Owner, Picture};

/// Nobody is asked: the driver is not run.
struct Nobody;

impl AssumeRole for Nobody {
    async fn assume_role(&self, _: &SessionKey) -> Result<Credentials, Failure> {
        std::future::pending().await
    }
}

/// What the pod of a case gets at the door.
fn standing(case: &Case) -> Option<Door> {
    let options = OfflineOptions {
        point: Point::Door,
        ..OfflineOptions::default()
    };
    let offline = load(&case.world.documents, options).unwrap();
    let registry = &mut Registry::default();
    let (sessions, _) = Sessions::new(
        Nobody,
        EngineOptions::default(),
        Clock::system(),
        SessionMetrics::register(registry),
    );
    let picture = Arc::new(Picture::default());
    let decider = Decider::new(offline.keeper.rules(), sessions, Clock::system());
    let parts = DirectorParts {
        picture: picture.clone(),
        decider: decider.clone(),
        metrics: AgentMetrics::register(registry),
        guard: Guard::default(),
        keeper: offline.keeper,
    };
    let mut director = Director::new(parts, &Readiness::new());

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
    director.update(Update::Workloads(Change::Snapshot(vec![workload])));
    let Some(Owner::Pod(resident)) = picture.owner("10.0.0.1".parse().unwrap()) else {
        // Nobody is known at its address, so there is neither a refusal nor a role.
        assert!(mirror || host, "{}: the pod owns no address", case.name);
        assert_ne!(case.expect.door, Some(Door::Allow), "{}", case.name);
        return case.expect.door;
    };
    Some(match &decider.standing(&resident, decider.now()).standing {
        Standing::Allowed(_) => Door::Allow,
        Standing::Denied { .. } => Door::Deny,
        Standing::NoRole => Door::None,
        Standing::Undecided => return None,
    })
}

#[test]
fn doors_say_what_the_table_of_cases_says() {
    let cases = cases::load_all().unwrap();
    let mut wrong = Vec::new();
    let mut asked = 0;
    for case in cases.iter().filter(|case| case.kind() == "Pod") {
        let Some(expected) = case.expect.door else {
            continue;
        };
        asked += 1;
        let found = standing(case);
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
