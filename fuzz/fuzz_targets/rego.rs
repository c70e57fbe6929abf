//! Whatever stands in ConfigMaps and reviews: a book comes out, every question is answered within
//! its time, and no message drives a terminal.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use rolegate_rego::{Kind, Points, PolicyBook, PolicySource, Settings};

fuzz_target!(|input: &[u8]| {
    // A module, data and a review, apart by NUL, so that seeds are text.
    let mut parts = input.splitn(3, |byte| *byte == 0);
    let mut part = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (module, data, review) = (part(), part(), part());
    let source = |name: &str, kind, text| PolicySource {
        namespace: "opa".into(),
        name: name.into(),
        kind,
        points: Points { gate: true, door: name == "door" },
        entries: BTreeMap::from([("main".into(), text)]),
    };
    let mut book = PolicyBook::new(Settings { wrap_pods: true, ..Settings::default() });
    book.apply(source("data", Kind::Data, data));
    book.apply(source("gate", Kind::Policy, module.clone()));
    book.apply(source("door", Kind::Policy, module));
    let policies = book.snapshot();
    for status in book.statuses().values() {
        assert!(status.to_json()["status"].is_string());
    }
    let never = book.never_loaded();
    let now = "2024-03-01T12:00:00Z".parse().expect("a fixed time");
    let Ok(findings) = policies.judge_review_json(review.as_bytes(), now) else {
        return;
    };
    assert!(never.keys().all(|id| findings.denials.iter().any(|denial| denial.policy == *id)));
    for denial in &findings.denials {
        assert!(!denial.message.is_empty() && denial.message.len() <= 1024);
        assert!(!denial.message.chars().any(char::is_control), "{:?}", denial.message);
    }
    assert!(findings.reason().len() <= 4096);
});
