mod further_layer;
mod source;

use jiff::Timestamp;

use super::*;
use crate::attribution::{Attribution, SourceIdentity, WorkloadTags};
use crate::config::Modes;
use crate::decision::{Decision, DenialSource, NotSynced};
use crate::decision_cache::DecisionCache;
use crate::grant::tests::grant;
use crate::layer::{AccessRequest, LayerId, Verdict};
use crate::session::SessionKey;
use crate::test_util::pod;
use crate::workload::Workload;

fn config(namespace: Mode, grants: Mode) -> RuleConfig {
    RuleConfig {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
        modes: Modes::OFF
            .with(LayerId::Namespace, namespace)
            .with(LayerId::Grants, grants),
        ..RuleConfig::default()
    }
}

fn is(config: RuleConfig) -> RuleUpdate {
    RuleUpdate::Config(ClusterConfig::Valid(Arc::new(config)))
}

/// Returns a builder with namespace `default`, without annotations, and a grant of `reader`.
fn builder() -> RuleSetBuilder {
    let mut builder = RuleSetBuilder::new(
        config(Mode::Enforce, Mode::Off),
        SessionScope::Workload,
        3600,
    );
    builder.set_aws_environment(AwsEnvironment::default());
    let default = Namespace {
        name: "default".into(),
        ..Namespace::default()
    };
    builder.update(RuleUpdate::Namespaces(Change::Snapshot(vec![default])));
    builder.update(RuleUpdate::Grants(Change::Snapshot(vec![grant(
        "one",
        &["reader"],
        "default",
    )])));
    builder
}

fn decide(builder: &RuleSetBuilder, role: &str) -> Decision {
    builder
        .rule_set()
        .decide(&pod(Some(role)), Timestamp::UNIX_EPOCH)
}

fn allows(builder: &RuleSetBuilder, role: &str) -> bool {
    matches!(decide(builder, role), Decision::Allow { .. })
}

#[test]
fn all_layers_that_are_enforced_must_allow() {
    let mut builder = builder();
    assert!(!allows(&builder, "reader"), "the namespace allows nothing");
    builder.update(is(config(Mode::Off, Mode::Enforce)));
    assert!(allows(&builder, "reader") && !allows(&builder, "writer"));
    builder.update(is(config(Mode::Enforce, Mode::Enforce)));
    assert!(!allows(&builder, "reader"));
    builder.update(is(RuleConfig {
        allow_unannotated: true,
        ..config(Mode::Enforce, Mode::Enforce)
    }));
    assert!(allows(&builder, "reader") && !allows(&builder, "writer"));
}

#[test]
fn audit_mode_reports_and_allows() {
    let mut builder = builder();
    builder.update(is(config(Mode::Audit, Mode::Enforce)));
    let Decision::Allow { audited, rules, .. } = decide(&builder, "reader") else {
        panic!("refused");
    };
    assert_eq!((rules.len(), audited.len()), (1, 1));
    assert_eq!(audited[0].denied_by, LayerId::Namespace.into());
    builder.update(is(config(Mode::Off, Mode::Audit)));
    let Decision::Allow { audited, .. } = decide(&builder, "writer") else {
        panic!("refused");
    };
    assert_eq!(audited[0].denied_by, LayerId::Grants.into());
}

#[test]
fn threat_10_a_configuration_that_is_gone_refuses_everything() {
    let mut builder = builder();
    builder.update(is(config(Mode::Off, Mode::Enforce)));
    assert!(allows(&builder, "reader") && builder.missing().is_none());
    builder.update(RuleUpdate::Config(ClusterConfig::Invalid("bad".into())));
    assert!(allows(&builder, "reader"), "the last good one stays");
    builder.update(RuleUpdate::Config(ClusterConfig::Missing));
    assert!(!allows(&builder, "reader") && builder.missing().is_some());
    builder.update(RuleUpdate::Config(ClusterConfig::Invalid("bad".into())));
    assert!(
        !allows(&builder, "reader"),
        "what was deleted does not come back"
    );
    builder.update(is(config(Mode::Off, Mode::Enforce)));
    assert!(allows(&builder, "reader"));
}

#[test]
fn threat_10_what_was_never_loaded_refuses_everything() {
    let mut builder = RuleSetBuilder::new(
        config(Mode::Off, Mode::Enforce),
        SessionScope::Workload,
        3600,
    );
    builder.set_aws_environment(AwsEnvironment::default());
    let default = Namespace {
        name: "default".into(),
        ..Namespace::default()
    };
    builder.update(RuleUpdate::Namespaces(Change::Snapshot(vec![default])));
    assert_eq!(builder.not_synced(), Some(NotSynced::Grants));
    assert!(!allows(&builder, "reader"));
    let grants = vec![grant("one", &["reader"], "default")];
    builder.update(RuleUpdate::Grants(Change::Snapshot(grants)));
    assert!(allows(&builder, "reader") && builder.not_synced().is_none());
    let rego = RuleConfig {
        modes: Modes::default().with(LayerId::Rego, Mode::Enforce),
        ..config(Mode::Off, Mode::Enforce)
    };
    builder.update(is(rego));
    assert_eq!(builder.not_synced(), Some(NotSynced::Policies));
    builder.update(RuleUpdate::Config(ClusterConfig::Invalid("bad".into())));
    let mut unused =
        RuleSetBuilder::new(config(Mode::Off, Mode::Off), SessionScope::Workload, 3600);
    unused.update(RuleUpdate::Config(ClusterConfig::Invalid("bad".into())));
    assert!(
        unused.missing().is_some(),
        "no valid configuration precedes it"
    );
}

#[test]
fn a_layer_in_audit_mode_does_not_delay_decisions() {
    let modes = Modes::OFF
        .with(LayerId::Grants, Mode::Audit)
        .with(LayerId::Rego, Mode::Audit);
    let config = RuleConfig {
        modes,
        ..config(Mode::Off, Mode::Off)
    };
    let mut builder = RuleSetBuilder::new(config, SessionScope::Workload, 3600);
    builder.set_aws_environment(AwsEnvironment::default());
    let default = Namespace {
        name: "default".into(),
        ..Namespace::default()
    };
    builder.update(RuleUpdate::Namespaces(Change::Snapshot(vec![default])));
    assert_eq!(builder.not_synced(), None);
    assert!(allows(&builder, "reader"));
}

#[test]
fn each_change_is_a_new_generation_and_no_change_is_none() {
    let mut builder = builder();
    let before = builder.rule_set().generation;
    let same = grant("one", &["reader"], "default");
    assert_eq!(
        builder.update(RuleUpdate::Grants(Change::Apply(same))),
        Invalidated::Nothing
    );
    assert_eq!(builder.rule_set().generation, before);
    let other = grant("one", &["writer"], "default");
    assert_eq!(
        builder.update(RuleUpdate::Grants(Change::Apply(other))),
        Invalidated::All
    );
    assert!(builder.rule_set().generation > before);
    let labelled = Namespace {
        name: "default".into(),
        labels: [("a", "b")].into_iter().collect(),
        ..Namespace::default()
    };
    let change = RuleUpdate::Namespaces(Change::Apply(labelled));
    assert_eq!(
        builder.update(change),
        Invalidated::Namespace("default".into())
    );
}

#[test]
fn each_change_of_namespaces_is_a_new_generation() {
    let mut builder = builder();
    let shop = Namespace {
        name: "shop".into(),
        ..Namespace::default()
    };
    for change in [
        Change::Snapshot(Vec::new()),
        Change::Apply(shop.clone()),
        Change::Delete(shop.clone()),
        Change::Snapshot(vec![shop]),
    ] {
        let before = builder.rule_set().generation;
        builder.update(RuleUpdate::Namespaces(change));
        assert!(builder.rule_set().generation > before);
    }
}

#[test]
fn the_cluster_is_a_tag_of_every_session() {
    let mut builder = builder();
    builder.update(is(RuleConfig {
        cluster: Some("prod-1".into()),
        ..config(Mode::Off, Mode::Enforce)
    }));
    let Decision::Allow { key, .. } = decide(&builder, "reader") else {
        panic!("refused");
    };
    let limits = key.limits.unwrap();
    assert_eq!(limits.tags.get("eks-cluster-name"), Some("prod-1"));
}

/// Returns the sessions of pods under a configuration and a grant of their role.
fn sessions(
    given: RuleConfig,
    change: impl Fn(&mut Grant),
    pods: &[&Workload],
) -> Vec<Result<SessionKey, String>> {
    let mut builder = builder();
    builder.update(is(RuleConfig {
        attribution: given.attribution,
        cluster: given.cluster,
        ..config(Mode::Off, Mode::Enforce)
    }));
    let mut granted = grant("one", &["reader"], "default");
    change(&mut granted);
    builder.update(RuleUpdate::Grants(Change::Snapshot(vec![granted])));
    let rules = builder.rule_set();
    let cache = DecisionCache::default();
    let session = |pod: &&Workload| match cache.decide(&rules, pod, Timestamp::UNIX_EPOCH) {
        Decision::Allow { key, .. } => Ok(key),
        Decision::Deny(denial) => Err(denial.to_string()),
        other => panic!("{other:?}"),
    };
    pods.iter().map(session).collect()
}

fn session(
    given: RuleConfig,
    change: impl Fn(&mut Grant),
    pod: &Workload,
) -> Result<SessionKey, String> {
    sessions(given, change, &[pod]).remove(0)
}

#[test]
fn attribution_follows_configuration_and_grant() {
    let all = Attribution {
        tags: WorkloadTags::Pod,
        transitive: true,
        source: SourceIdentity::ServiceAccount,
    };
    let config = |attribution| RuleConfig {
        attribution,
        ..RuleConfig::default()
    };
    let pod = pod(Some("reader"));
    let nothing = session(config(Attribution::default()), |_| (), &pod).unwrap();
    assert_eq!(nothing.limits, None);

    let key = session(config(all), |_| (), &pod).unwrap();
    assert_eq!(
        &*key.name, "default.app",
        "a pod's own session is named after it"
    );
    let limits = key.limits.unwrap();
    assert_eq!(limits.tags.get("kubernetes-pod-uid"), Some("uid-1"));
    assert!(limits.transitive);
    assert_eq!(limits.source_identity.as_deref(), Some("default.default"));

    // A grant takes precedence over the configuration, for each of the three settings separately.
    let key = session(
        config(all),
        |grant| {
            grant.session.tags = [("team".into(), "payments".into())].into();
            grant.session.attribution.tags = Some(WorkloadTags::Workload);
            grant.session.attribution.source = Some(SourceIdentity::None);
        },
        &pod,
    );
    let limits = key.unwrap().limits.unwrap();
    let keys: Vec<_> = limits.tags.iter().map(|(key, _)| key).collect();
    let expected = ["kubernetes-namespace", "kubernetes-service-account", "team"];
    assert_eq!(keys, expected);
    assert!(limits.transitive && limits.source_identity.is_none());
}

#[test]
fn pods_share_a_session_unless_it_is_tagged_with_the_pod() {
    let (one, mut two) = (pod(Some("reader")), pod(Some("reader")));
    // The same name, as for a StatefulSet's pod and its successor.
    two.uid = "uid-2".into();
    let shared = |tags| {
        let change = |grant: &mut Grant| grant.session.attribution.tags = Some(tags);
        let keys = sessions(RuleConfig::default(), change, &[&one, &two]);
        keys[0].as_ref().unwrap() == keys[1].as_ref().unwrap()
    };
    assert!(shared(WorkloadTags::Workload));
    assert!(!shared(WorkloadTags::Pod));
}

#[test]
fn what_sts_would_refuse_is_denied_with_the_reason() {
    let config = RuleConfig {
        cluster: Some("prod-1".into()),
        attribution: Attribution {
            tags: WorkloadTags::Workload,
            ..Attribution::default()
        },
        ..RuleConfig::default()
    };
    let tags = |count: usize| {
        move |grant: &mut Grant| {
            let tags = (0..count).map(|number| (format!("tag-{number}"), "x".into()));
            grant.session.tags = tags.collect();
        }
    };
    assert!(session(config.clone(), tags(47), &pod(Some("reader"))).is_ok());
    let denied = session(config.clone(), tags(48), &pod(Some("reader"))).unwrap_err();
    assert!(
        denied.contains("has 48 session tags and rolegate adds 3, but STS accepts 50"),
        "{denied}"
    );
    // Names from a file are not limited by the API server.
    let mut odd = pod(Some("reader"));
    odd.service_account = "a;b".into();
    let denied = session(config, |_| (), &odd).unwrap_err();
    assert!(denied.contains("kubernetes-service-account"), "{denied}");
}

#[test]
fn session_duration_is_limited_to_the_maximum() {
    let mut builder = builder();
    builder.set_aws_environment(AwsEnvironment {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
        max_session_seconds: Some(3600),
        ..AwsEnvironment::default()
    });
    builder.update(is(config(Mode::Off, Mode::Enforce)));
    let mut long = grant("one", &["reader"], "default");
    for (asked, given) in [(43_200, 3600), (900, 900)] {
        long.session.duration_seconds = Some(asked);
        builder.update(RuleUpdate::Grants(Change::Snapshot(vec![long.clone()])));
        let Decision::Allow { key, .. } = decide(&builder, "reader") else {
            panic!("refused");
        };
        assert_eq!(key.duration_seconds, given);
    }
}

#[test]
fn flags_complete_what_the_configuration_leaves_open() {
    let own = |name: &str| ReservedRole::parse(name).unwrap();
    let flags = RuleConfig {
        base: BaseArn::parse("arn:aws:iam::210987654321:role/").ok(),
        default_role: Some("flagged".into()),
        reserved_roles: vec![own("flagged-node")],
        ..config(Mode::Off, Mode::Off)
    };
    let mut builder = RuleSetBuilder::new(flags, SessionScope::Workload, 3600);
    builder.set_aws_environment(AwsEnvironment {
        base: BaseArn::parse("arn:aws:iam::999999999999:role/").ok(),
        reserved_roles: vec![own("found-node")],
        ..AwsEnvironment::default()
    });
    let said = |builder: &RuleSetBuilder| {
        let rules = builder.rule_set();
        let own: Vec<_> = rules
            .reserved_roles
            .into_iter()
            .map(|own| own.name)
            .collect();
        let default = rules.default_role.map(|role| role.to_string());
        (default.unwrap_or_default(), own.join(" "))
    };
    let of = |account: &str, name: &str| format!("arn:aws:iam::{account}:role/{name}");
    let flagged = of("210987654321", "flagged");
    assert_eq!(
        said(&builder),
        (flagged.clone(), "flagged-node found-node".into())
    );
    // The modes of layers come from the configuration alone, regardless of flags.
    let silent = RuleConfig {
        base: None,
        reserved_roles: vec![own("node")],
        ..config(Mode::Enforce, Mode::Enforce)
    };
    builder.update(is(silent.clone()));
    assert_eq!(
        said(&builder),
        (flagged, "node flagged-node found-node".into())
    );
    assert_eq!(builder.config().modes[LayerId::Grants], Mode::Enforce);
    builder.update(is(RuleConfig {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
        default_role: Some("written".into()),
        ..silent
    }));
    assert_eq!(said(&builder).0, of("123456789012", "written"));
}

#[test]
fn threat_06_own_roles_of_the_configuration_are_refused_whatever_allows_them() {
    let mut builder = builder();
    builder.update(is(RuleConfig {
        reserved_roles: vec![ReservedRole::parse("reader").unwrap()],
        ..config(Mode::Off, Mode::Enforce)
    }));
    let Decision::Deny(denial) = decide(&builder, "reader") else {
        panic!("allowed");
    };
    assert_eq!(denial.denied_by, DenialSource::ReservedRole);
    builder.update(is(config(Mode::Off, Mode::Enforce)));
    assert!(allows(&builder, "reader"));
}

#[test]
fn threat_28_what_rules_read_is_known_once_they_are_loaded() {
    let needs = |builder: &RuleSetBuilder| builder.needs(&builder.rule_set());
    let mut builder =
        RuleSetBuilder::new(config(Mode::Off, Mode::Audit), SessionScope::Workload, 3600);
    assert_eq!(needs(&builder), None, "grants are not loaded");
    let mut labelled = grant("one", &["reader"], "default");
    labelled.subjects[0].pod_selector = Some(crate::selector::Selector {
        labels: [("app", "api")].into_iter().collect(),
        ..Default::default()
    });
    builder.update(RuleUpdate::Grants(Change::Snapshot(vec![labelled])));
    let read = needs(&builder).unwrap();
    assert_eq!(read.pod_labels, ["app"].iter().collect());
    assert!(!read.namespace_roles, "the layer that reads them is off");
    builder.update(is(config(Mode::Enforce, Mode::Off)));
    let read = needs(&builder).unwrap();
    assert_eq!(
        (read.pod_labels, read.namespace_roles),
        (Default::default(), true)
    );
    builder.update(RuleUpdate::Config(ClusterConfig::NotSynced));
    assert_eq!(needs(&builder), None);
}

#[test]
fn threat_28_nothing_is_decided_by_what_was_not_kept() {
    let mut builder = builder();
    let unread = |without_roles| Namespace {
        name: "default".into(),
        without_roles,
        ..Namespace::default()
    };
    builder.update(RuleUpdate::Namespaces(Change::Apply(unread(true))));
    assert_eq!(decide(&builder, "reader"), Decision::Pending);
    builder.update(is(config(Mode::Off, Mode::Off)));
    assert!(allows(&builder, "reader"), "nothing reads it");
    builder.update(is(config(Mode::Audit, Mode::Off)));
    assert!(
        allows(&builder, "reader"),
        "a layer in audit mode holds up nothing"
    );
    builder.update(is(config(Mode::Enforce, Mode::Off)));
    builder.update(RuleUpdate::Namespaces(Change::Apply(unread(false))));
    assert!(matches!(decide(&builder, "reader"), Decision::Deny(_)));
}

#[test]
fn namespaces_that_a_list_does_not_have_are_gone() {
    let mut builder = builder();
    let retain = |names: &[&str]| {
        RuleUpdate::RetainNamespaces(names.iter().map(|name| (*name).into()).collect())
    };
    builder.update(is(config(Mode::Off, Mode::Enforce)));
    let before = builder.rule_set().generation;
    assert_eq!(
        builder.update(retain(&["default", "new"])),
        Invalidated::Nothing
    );
    assert_eq!(builder.rule_set().generation, before);
    assert!(allows(&builder, "reader"));
    assert_eq!(builder.update(retain(&["new"])), Invalidated::All);
    assert_eq!(decide(&builder, "reader"), Decision::Pending);
}

#[test]
fn a_change_touches_its_namespace_or_all() {
    let in_namespace = |namespace: &str| Workload {
        namespace: namespace.into(),
        ..pod(None)
    };
    let (default, payments) = (in_namespace("default"), in_namespace("payments"));
    assert!(!Invalidated::Nothing.includes(&default));
    let one = Invalidated::Namespace("default".into());
    assert!(one.includes(&default) && !one.includes(&payments));
    assert!(Invalidated::All.includes(&payments));
    let account = |namespace: &str, name: &str| Invalidated::ServiceAccount {
        namespace: namespace.into(),
        name: name.into(),
    };
    assert!(account("default", "default").includes(&default));
    assert!(!account("default", "other").includes(&default));
    assert!(!account("default", "default").includes(&payments));
}

/// Refuses everything.
#[derive(Debug)]
struct Refusing;

impl Layer for Refusing {
    fn id(&self) -> LayerId {
        LayerId::Rego
    }

    fn evaluate(&self, _: &AccessRequest<'_>) -> Verdict {
        Verdict::Deny {
            rule: "all".into(),
            reason: "everything is refused".into(),
            transient: false,
        }
    }
}

#[test]
fn policies_count_from_when_they_are_set_until_they_are_taken_back() {
    let mut builder = builder();
    let mut asked = config(Mode::Off, Mode::Off);
    asked.modes[LayerId::Rego] = Mode::Enforce;
    builder.update(is(asked));
    let generation = builder.rule_set().generation;
    builder.set_rego(Some(Arc::new(Refusing)));
    assert_eq!(builder.not_synced(), None);
    let set = builder.rule_set();
    assert!(set.generation > generation, "kept decisions are outdated");
    assert!(matches!(
        decide(&builder, "reader"),
        Decision::Deny(denial) if denial.denied_by == LayerId::Rego.into()
    ));
    builder.set_rego(None);
    assert_eq!(builder.not_synced(), Some(NotSynced::Policies));
    assert!(builder.rule_set().generation > set.generation);
}

#[test]
fn what_was_reported_is_compiled_anew_with_the_base_that_is_found() {
    let mut flags = config(Mode::Enforce, Mode::Enforce);
    flags.base = None;
    let mut builder = RuleSetBuilder::new(flags, SessionScope::Workload, 3600);
    builder.update(RuleUpdate::Config(ClusterConfig::Unused));
    builder.update(RuleUpdate::Namespaces(Change::Snapshot(vec![Namespace {
        name: "default".into(),
        allowed_roles: Some(r#"["reader"]"#.into()),
        ..Namespace::default()
    }])));
    let grants = vec![grant("one", &["reader"], "default")];
    builder.update(RuleUpdate::Grants(Change::Snapshot(grants)));
    assert!(builder.grant("one").is_some() && builder.grant("two").is_none());
    builder.set_aws_environment(AwsEnvironment {
        base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
        ..AwsEnvironment::default()
    });
    assert!(allows(&builder, "reader") && !allows(&builder, "writer"));
}
