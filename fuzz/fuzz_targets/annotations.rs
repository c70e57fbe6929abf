//! For any annotations of pods and namespaces, the decision is bounded and never allows a reserved
//! role.
#![no_main]

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use rolegate_core::arn::BaseArn;
use rolegate_core::decision::{Decision, ReservedRole, RuleSet};
use rolegate_core::layer::namespace::NamespaceLayer;
use rolegate_core::layer::{ActiveLayer, Mode};
use rolegate_core::namespace::{Namespace, NamespaceRules};
use rolegate_core::pattern::PatternFormat;
use rolegate_core::test_util::pod;
use rolegate_core::workload::{RoleRequest, Workload};

fuzz_target!(|texts: (&str, &str, &str, &str, &str, &str, bool)| {
    let (role, external_id, session_name, allowed, permitted, default_role, regexp) = texts;
    let given = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
    let base = BaseArn::parse("arn:aws:iam::123456789012:role/").expect("a fixed ARN");
    let namespace = Namespace {
        name: "default".into(),
        allowed_roles: given(allowed),
        permitted: given(permitted),
        default_role: given(default_role),
        ..Namespace::default()
    };
    let format = if regexp {
        PatternFormat::Regexp
    } else {
        PatternFormat::Glob
    };
    let compiled = NamespaceRules::new(&namespace, Some(&base), format);
    let rules = RuleSet {
        base: Some(base),
        session_seconds: 3600,
        reserved_roles: vec![ReservedRole {
            account: None,
            name: "node".into(),
        }],
        layers: vec![ActiveLayer {
            layer: Arc::new(NamespaceLayer::default()),
            mode: Mode::Enforce,
        }],
        namespaces: Arc::new(HashMap::from([("default".into(), Arc::new(compiled))])),
        ..RuleSet::default()
    };
    let pod = Workload {
        role_request: RoleRequest {
            role: Some(role.into()),
            external_id: given(external_id),
            session_name: given(session_name),
        },
        ..pod(None)
    };
    match rules.decide(&pod, Timestamp::UNIX_EPOCH) {
        Decision::Allow { key, .. } => {
            assert!(!key.role.name().eq_ignore_ascii_case("node"));
            assert!(namespace.allowed_roles.is_some() || namespace.permitted.is_some());
            assert!((2..=64).contains(&key.name.len()));
            assert!(!key.name.contains('.') || key.name.starts_with("default."));
        }
        Decision::Deny(denial) => {
            let text = denial.to_string();
            assert!(text.len() < 8192, "{}", text.len());
            assert!(!text.contains(['\r', '\n', '\u{1b}']), "{text:?}");
        }
        Decision::NoRole | Decision::Pending => {}
    }
});
