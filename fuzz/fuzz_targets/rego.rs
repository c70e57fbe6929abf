//! For any ConfigMaps and reviews, policies load or fail, every evaluation ends in time, and
//! messages contain no terminal control sequences.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use rolegate_rego::{EnforcementPoints, Kind, PolicySource, PolicyStore, Settings};

#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();

fuzz_target!(|input: &[u8]| {
    // A module, data and a review, separated by NUL so that seeds are text.
    let mut parts = input.splitn(3, |byte| *byte == 0);
    let mut part = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (module, data, review) = (part(), part(), part());
    let source = |name: &str, kind, text| PolicySource {
        namespace: "opa".into(),
        name: name.into(),
        kind,
        points: EnforcementPoints {
            admission: true,
            agent: name == "agent",
        },
        entries: BTreeMap::from([("main".into(), text)]),
    };
    let mut builder = PolicyStore::new(Settings {
        wrap_pods: true,
        ..Settings::default()
    });
    builder.apply(source("data", Kind::Data, data));
    builder.apply(source("admission", Kind::Policy, module.clone()));
    builder.apply(source("agent", Kind::Policy, module));
    let policies = builder.snapshot();
    for status in builder.statuses().values() {
        assert!(status.to_json()["status"].is_string());
    }
    let never = builder.never_loaded();
    let now = "2024-03-01T12:00:00Z".parse().expect("a fixed time");
    let Ok(findings) = policies.evaluate_review_json(review.as_bytes(), now) else {
        return;
    };
    assert!(
        never
            .keys()
            .all(|id| findings.denials.iter().any(|denial| denial.policy == *id))
    );
    for denial in &findings.denials {
        assert!(!denial.message.is_empty() && denial.message.len() <= 1024);
        assert!(
            !denial.message.chars().any(char::is_control),
            "{:?}",
            denial.message
        );
    }
    assert!(findings.reason().len() <= 4096);
});
