//! The decision: whether a workload may have a role, and with what session.
//!
//! One pure function, [`RuleSet::decide`], that every door, gate and mirror asks.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::arn::{ArnError, BaseArn, RoleArn, listed_name, resolve};
use crate::attribution::{self, Attribution};
use crate::grant::GrantSession;
use crate::layer::{ActiveLayer, Ask, Judgement, Mode, Verdict};
use crate::namespace::NamespaceRules;
use crate::session::{SessionKey, SessionLimits};
use crate::session_name::{SessionScope, session_name};
use crate::workload::Workload;

/// Longest `ExternalId` that STS takes, in characters.
const MAX_EXTERNAL_ID: usize = 1224;

/// A role that is rolegate's or the node's own, refused to everyone whatever the rules say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnRole {
    /// The account; `None` where it is not known, which then stands for any.
    pub account: Option<String>,
    /// The name without path, unique in an account.
    pub name: String,
}

impl OwnRole {
    /// Reads an ARN, which is one account's role, or a name, which is any account's.
    ///
    /// # Errors
    /// A text that is neither.
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let is_arn = text.starts_with("arn:");
        let role = if is_arn {
            RoleArn::parse(text)?
        } else {
            // Any account's will do to check the name.
            let any = BaseArn::of_account("aws", "000000000000")?;
            resolve(text, Some(&any))?
        };
        Ok(Self {
            account: is_arn.then(|| role.account().to_owned()),
            name: role.name().to_owned(),
        })
    }

    /// Whether `role` is this one.
    pub fn is(&self, role: &RoleArn) -> bool {
        // IAM tells role names apart without regard to case.
        self.name.eq_ignore_ascii_case(role.name())
            && self
                .account
                .as_deref()
                .is_none_or(|account| account == role.account())
    }
}

/// An immutable snapshot of everything a decision depends on, apart from the workload.
#[derive(Debug, Clone, Default)]
pub struct RuleSet {
    /// What completes bare role names.
    pub base: Option<BaseArn>,
    /// The role of pods that name none, in namespaces that name none.
    pub default_role: Option<RoleArn>,
    /// Roles refused to everyone.
    pub own_roles: Vec<OwnRole>,
    /// Which workloads share a session.
    pub scope: SessionScope,
    /// The life asked of STS, seconds.
    pub session_seconds: u32,
    /// The layers that are on; all of them that are enforced must allow.
    pub layers: Vec<ActiveLayer>,
    /// The namespaces that are known.
    pub namespaces: Arc<HashMap<Arc<str>, Arc<NamespaceRules>>>,
    /// The longest life that STS gives us, seconds: what is longer is asked for as this.
    pub longest_session: Option<u32>,
    /// The name of the cluster, as a tag of every session, where trust policies check it.
    pub cluster: Option<Arc<str>>,
    /// How sessions say whose they are, where no grant says otherwise.
    pub attribution: Attribution,
    /// What is missing for the rules to count, such as a configuration that is gone: while there
    /// is something, everything is refused.
    pub missing: Option<Arc<str>>,
    /// What has not been seen yet: while there is something, nothing is decided.
    pub unseen: Option<&'static str>,
    /// Which state of the rules this is: what was decided by an earlier one is decided again.
    pub generation: u64,
}

/// What a workload may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The role, and the session to serve.
    Allow {
        /// What to ask of STS.
        key: SessionKey,
        /// The role's name as the pod is told it.
        listed: String,
        /// The rules that allowed it, one for each layer that is enforced.
        rules: Vec<String>,
        /// What layers in audit mode would have refused.
        audited: Vec<Denial>,
    },
    /// Neither the pod nor a default names a role.
    NoRole,
    /// Refused.
    Deny(Denial),
    /// The workload's namespace, or rules, have not been seen yet.
    Undecided,
}

/// A refusal, told to the pod's owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("role {role} is refused by {layer}: {reason}")]
pub struct Denial {
    /// The role as far as it is known, bounded.
    pub role: String,
    /// The layer that refused, or `request` for a wish that is malformed and `own-role` for ours.
    pub layer: &'static str,
    /// The rule in that layer.
    pub rule: String,
    /// One sentence.
    pub reason: String,
    /// Whether it is of this moment and not of the rules, see [`Verdict::Deny`].
    pub passing: bool,
}

/// A decision with everything that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// The role that was asked for, where one was.
    pub role: Option<RoleArn>,
    /// What each layer that is on said, in order.
    pub judgements: Vec<Judgement>,
}

impl Decision {
    /// Whether something in it is of this moment and not of the rules, so that it must be made again
    /// soon, and for nobody else.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Allow { audited, .. } => audited.iter().any(|denial| denial.passing),
            Self::Deny(denial) => denial.passing,
            Self::NoRole | Self::Undecided => false,
        }
    }
}

impl RuleSet {
    /// Decides for a workload as it is annotated now.
    pub fn decide(&self, workload: &Workload, now: Timestamp) -> Decision {
        self.explain(workload, now).decision
    }

    /// Decides, and keeps what each layer said.
    pub fn explain(&self, workload: &Workload, now: Timestamp) -> Explanation {
        let undecided = |decision| Explanation {
            decision,
            role: None,
            judgements: Vec::new(),
        };
        if self.unseen.is_some() {
            return undecided(Decision::Undecided);
        }
        let Some(namespace) = self.namespaces.get(&workload.namespace) else {
            return undecided(Decision::Undecided);
        };
        let (role, is_default) = match self.wished(workload, namespace) {
            Ok(Some(wished)) => wished,
            Ok(None) => return undecided(Decision::NoRole),
            Err(denial) => {
                // A name may lack only the base ARN of the configuration that is missing.
                let denial = match &self.missing {
                    Some(missing) => missing_rules(denial.role, missing),
                    None => denial,
                };
                return undecided(Decision::Deny(denial));
            }
        };
        let ask = Ask {
            workload,
            role: &role,
            is_default,
            namespace,
            now,
        };
        let judgements: Vec<_> = self
            .layers
            .iter()
            .map(|active| Judgement {
                layer: active.layer.name(),
                mode: active.mode,
                verdict: active.layer.judge(&ask),
            })
            .collect();
        let decision = self
            .conclude(&ask, &judgements)
            .unwrap_or_else(Decision::Deny);
        Explanation {
            decision,
            role: Some(role),
            judgements,
        }
    }

    /// The same rules without one layer, for who asks that layer in another way.
    pub fn without(&self, layer: &str) -> Self {
        let mut rules = self.clone();
        rules.layers.retain(|active| active.layer.name() != layer);
        rules
    }

    /// Whether what was decided may change by the passing of time alone.
    pub fn reads_time(&self) -> bool {
        self.layers.iter().any(|active| active.layer.reads_time())
    }

    /// The role that the pod, its namespace or the administrator names, in that order.
    fn wished(
        &self,
        workload: &Workload,
        namespace: &NamespaceRules,
    ) -> Result<Option<(RoleArn, bool)>, Denial> {
        let malformed = |role: &str, rule: &str, reason: String| Denial {
            role: crate::arn::shorten(role).escape_debug().to_string(),
            layer: "request",
            rule: rule.into(),
            reason,
            passing: false,
        };
        if let Some(wish) = &workload.wish.role {
            if wish.is_empty() {
                return Ok(None);
            }
            return resolve(wish, self.base.as_ref())
                .map(|role| {
                    let is_default = self.default_role.as_ref() == Some(&role);
                    Some((role, is_default))
                })
                .map_err(|error| malformed(wish, "role annotation", error.to_string()));
        }
        match &namespace.annotations().default_role {
            Some(Ok(role)) => Ok(Some((role.clone(), false))),
            Some(Err(reason)) => Err(malformed(
                "(default of the namespace)",
                crate::annotation::DEFAULT_ROLE,
                reason.clone(),
            )),
            None => Ok(self.default_role.clone().map(|role| (role, true))),
        }
    }

    /// The decision, of what the layers said and of what comes before all layers.
    fn conclude(&self, ask: &Ask<'_>, judgements: &[Judgement]) -> Result<Decision, Denial> {
        let (workload, role) = (ask.workload, ask.role);
        let deny = |layer, rule: &str, reason: String| Denial {
            role: role.to_string(),
            layer,
            rule: rule.into(),
            reason,
            passing: false,
        };
        if workload.mirror {
            return Err(deny(
                "request",
                "mirror pod",
                "mirror pods of static pods get no role".into(),
            ));
        }
        if self.own_roles.iter().any(|own| own.is(role)) {
            return Err(deny(
                "own-role",
                "own role",
                "it is the role of the node or of rolegate itself, which no pod may have".into(),
            ));
        }
        if let Some(missing) = &self.missing {
            return Err(missing_rules(role.to_string(), missing));
        }
        let texts = [
            (&workload.labels, "the pod's labels"),
            (&workload.annotations, "the pod's annotations for AWS roles"),
            (&ask.namespace.labels, "the namespace's labels"),
        ];
        if let Some((_, what)) = texts.iter().find(|(values, _)| values.is_too_large()) {
            return Err(deny(
                "request",
                "labels and annotations",
                format!("{what} are larger than 32 KiB in all, so no rule can be asked about them"),
            ));
        }
        let external_id = workload.wish.external_id.clone();
        if let Some(id) = &external_id
            && !is_external_id(id)
        {
            return Err(deny(
                "request",
                "external ID annotation",
                "the external ID must be 2 to 1224 letters, digits and _+=,.@:/- characters".into(),
            ));
        }
        let mut rules = Vec::with_capacity(judgements.len());
        let mut audited = Vec::new();
        let mut granted: Option<&GrantSession> = None;
        for Judgement {
            layer,
            mode,
            verdict,
        } in judgements
        {
            match (mode, verdict) {
                (Mode::Off, _) | (Mode::Audit, Verdict::Allow { .. }) => {}
                (Mode::Enforce, Verdict::Allow { rule, session }) => {
                    rules.push(rule.clone());
                    granted = session.as_deref().or(granted);
                }
                (
                    _,
                    Verdict::Deny {
                        rule,
                        reason,
                        passing,
                    },
                ) => {
                    let denial = Denial {
                        passing: *passing,
                        ..deny(layer, rule, reason.clone())
                    };
                    if *mode == Mode::Enforce {
                        return Err(denial);
                    }
                    audited.push(denial);
                }
            }
        }
        let attribution = granted.map_or(self.attribution, |granted| {
            self.attribution.with(granted.attribution)
        });
        let limits = self
            .limits(workload, granted, attribution)
            .map_err(|reason| deny("request", "session tags", reason))?;
        let name = session_name(workload, attribution.scope(self.scope))
            .map_err(|error| deny("request", "session name annotation", error.to_string()))?;
        if let (Some(granted), Some(_)) = (granted, &workload.wish.session_name)
            && !granted.names.is_empty()
            && !granted.names.iter().any(|pattern| pattern.matches(&name))
        {
            return Err(deny(
                "grants",
                "session name annotation",
                format!("the grant does not allow the session name {name}"),
            ));
        }
        Ok(Decision::Allow {
            listed: listed_name(role, self.base.as_ref()).to_owned(),
            rules,
            audited,
            key: SessionKey {
                role: role.clone(),
                name,
                external_id,
                duration_seconds: granted
                    .and_then(|session| session.duration_seconds)
                    .unwrap_or(self.session_seconds)
                    .min(self.longest_session.unwrap_or(u32::MAX)),
                limits,
            },
        })
    }

    /// What the grant makes of the session, and what says whose it is, or why STS won't take that.
    fn limits(
        &self,
        workload: &Workload,
        granted: Option<&GrantSession>,
        attribution: Attribution,
    ) -> Result<Option<Arc<SessionLimits>>, String> {
        let granted = granted.and_then(|session| session.limits.as_ref());
        let tags = attribution.session_tags(workload, self.cluster.as_ref());
        let source_identity = attribution.source_identity(workload);
        if tags.is_empty() && source_identity.is_none() && !attribution.transitive {
            return Ok(granted.cloned());
        }
        if let Some((key, _)) = tags
            .iter()
            .find(|(key, value)| !attribution::is_tag(key, value))
        {
            return Err(format!(
                "STS would refuse the value of session tag {key}: it takes up to 256 letters,                  digits, blanks and _.:/=+-@"
            ));
        }
        let ours = tags.len();
        let granted = granted.map(|limits| &**limits);
        let all = granted
            .map(|limits| limits.tags.clone())
            .unwrap_or_default()
            .with(tags);
        if all.len() > attribution::MAX_TAGS {
            return Err(format!(
                "its grant has {} session tags and rolegate adds {ours}, and STS takes {} in all:                  ask your cluster's administrator to shorten the grant",
                all.len() - ours,
                attribution::MAX_TAGS
            ));
        }
        let limits = SessionLimits {
            transitive: attribution.transitive && !all.is_empty(),
            tags: all,
            source_identity,
            ..granted.cloned().unwrap_or_default()
        };
        Ok((limits != SessionLimits::default()).then(|| Arc::new(limits)))
    }
}

fn missing_rules(role: String, missing: &str) -> Denial {
    Denial {
        role,
        layer: "rules",
        rule: "rules are missing".into(),
        reason: missing.into(),
        passing: false,
    }
}

/// Whether a text is an `ExternalId` that STS takes.
pub fn is_external_id(text: &str) -> bool {
    (2..=MAX_EXTERNAL_ID).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_values::KeyValues;
    use crate::layer::namespace::NamespaceLayer;
    use crate::namespace::Namespace;
    use crate::pattern::PatternFormat;
    use crate::workload::tests::pod;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn rules(namespace: Namespace, format: PatternFormat) -> RuleSet {
        let base = BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap();
        let compiled = NamespaceRules::new(&namespace, Some(&base), format);
        RuleSet {
            base: Some(base),
            session_seconds: 3600,
            layers: vec![ActiveLayer {
                layer: Arc::new(NamespaceLayer::default()),
                mode: Mode::Enforce,
            }],
            namespaces: Arc::new(HashMap::from([("default".into(), Arc::new(compiled))])),
            ..RuleSet::default()
        }
    }

    fn annotated(allowed: Option<&str>, permitted: Option<&str>) -> Namespace {
        Namespace {
            name: "default".into(),
            allowed_roles: allowed.map(Into::into),
            permitted: permitted.map(Into::into),
            ..Namespace::default()
        }
    }

    fn is_allowed(rules: &RuleSet, role: &str) -> bool {
        matches!(rules.decide(&pod(Some(role)), NOW), Decision::Allow { .. })
    }

    #[test]
    fn the_namespace_layer_reads_both_dialects() {
        use PatternFormat::{Glob, Regexp};
        // allowed-roles, permitted, format, role, allowed
        type Case<'a> = (
            Option<&'a str>,
            Option<&'a str>,
            PatternFormat,
            &'a str,
            bool,
        );
        let cases: &[Case<'_>] = &[
            (None, None, Glob, "reader", false),
            (Some(r#"["reader"]"#), None, Glob, "reader", true),
            (Some(r#"["reader"]"#), None, Glob, "reader-admin", false),
            (Some("[]"), None, Glob, "reader", false),
            (Some("reader"), None, Glob, "reader", false),
            (Some(r#"["reader", 7]"#), None, Glob, "reader", false),
            (Some(r#"["team-[ab]"]"#), None, Regexp, "team-a", true),
            (Some(r#"["team-["]"#), None, Regexp, "team-[", false),
            (None, Some(".*"), Glob, "reader", true),
            (None, Some("reader"), Glob, "reader", true),
            (None, Some("reader"), Glob, "reader-admin", false),
            (None, Some(".*reader"), Glob, "team/reader", true),
            (
                None,
                Some("arn:aws:iam::123456789012:role/reader"),
                Glob,
                "reader",
                true,
            ),
            (None, Some(""), Glob, "reader", false),
            (None, Some("("), Glob, "reader", false),
            (Some(r#"["*"]"#), Some("writer"), Glob, "reader", false),
            (Some(r#"["*"]"#), Some("reader"), Glob, "reader", true),
            (
                Some(r#"["*"]"#),
                None,
                Glob,
                "arn:aws:iam::210987654321:role/reader",
                false,
            ),
        ];
        for (allowed, permitted, format, role, expected) in cases {
            let rules = rules(annotated(*allowed, *permitted), *format);
            assert_eq!(
                is_allowed(&rules, role),
                *expected,
                "{allowed:?} {permitted:?} {format:?} {role}"
            );
        }
    }

    #[test]
    fn own_roles_are_refused_even_where_everything_is_allowed() {
        let mut rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
        rules.own_roles = vec![OwnRole {
            account: Some("123456789012".into()),
            name: "node".into(),
        }];
        for wish in ["node", "NODE", "some/path/node", "/node"] {
            assert!(!is_allowed(&rules, wish), "{wish}");
        }
        assert!(is_allowed(&rules, "node-2"));
        assert!(is_allowed(&rules, "arn:aws:iam::210987654321:role/node"));
        rules.own_roles[0].account = None;
        assert!(!is_allowed(&rules, "arn:aws:iam::210987654321:role/node"));
    }

    #[test]
    fn an_own_role_is_one_accounts_or_any_accounts() {
        let own = |text: &str| {
            let own = OwnRole::parse(text).unwrap();
            (own.account, own.name)
        };
        assert_eq!(own("node"), (None, "node".into()));
        assert_eq!(own("/path/node"), (None, "node".into()));
        let account = Some("123456789012".to_owned());
        let arn = "arn:aws:iam::123456789012:role/path/node";
        assert_eq!(own(arn), (account, "node".into()));
        for wrong in [
            "",
            "a b",
            "../x",
            "arn:aws:iam::1:role/node",
            "ARN:x",
            "path/",
        ] {
            assert!(OwnRole::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn default_roles_in_their_order() {
        let mut namespace = annotated(Some(r#"["team"]"#), None);
        let mut with = rules(namespace.clone(), PatternFormat::Glob);
        assert_eq!(with.decide(&pod(None), NOW), Decision::NoRole);
        with.default_role = Some(resolve("basic", with.base.as_ref()).unwrap());
        let listed = |rules: &RuleSet, wish| match rules.decide(&pod(wish), NOW) {
            Decision::Allow { listed, .. } => listed,
            other => format!("{other:?}"),
        };
        assert_eq!(listed(&with, None), "basic");
        // As in kube2iam: what every pod gets may be named, and an empty annotation declines it.
        assert_eq!(listed(&with, Some("basic")), "basic");
        assert_eq!(with.decide(&pod(Some("")), NOW), Decision::NoRole);
        namespace.default_role = Some("team".into());
        let mut both = rules(namespace.clone(), PatternFormat::Glob);
        both.default_role = with.default_role;
        assert_eq!(listed(&both, None), "team");
        assert_eq!(listed(&both, Some("team")), "team");
        // A namespace cannot give itself by default what it may not have by name.
        namespace.default_role = Some("admin".into());
        let greedy = rules(namespace, PatternFormat::Glob);
        assert!(matches!(greedy.decide(&pod(None), NOW), Decision::Deny(_)));
    }

    #[test]
    fn what_shapes_a_session_is_in_its_key() {
        let rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
        let key = |change: fn(&mut Workload)| {
            let mut pod = pod(Some("reader"));
            change(&mut pod);
            match rules.decide(&pod, NOW) {
                Decision::Allow { key, .. } => key,
                other => panic!("{other:?}"),
            }
        };
        let plain = key(|_| ());
        assert_eq!(&*plain.name, "default.default");
        assert_eq!(plain, key(|pod| pod.name = "other".into()));
        for change in [
            (|pod| pod.wish.external_id = Some("id-b".into())) as fn(&mut Workload),
            |pod| pod.service_account = "api".into(),
            |pod| pod.wish.session_name = Some("blue".into()),
            |pod| pod.wish.role = Some("writer".into()),
        ] {
            assert_ne!(plain, key(change));
        }
    }

    #[test]
    fn malformed_wishes_and_mirror_pods_are_refused() {
        let rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
        for change in [
            (|pod| pod.wish.role = Some("../x".into())) as fn(&mut Workload),
            |pod| pod.wish.role = Some("x".repeat(4000).into()),
            |pod| pod.wish.external_id = Some("x".into()),
            |pod| pod.wish.external_id = Some("a b".into()),
            |pod| pod.wish.session_name = Some("other.app".into()),
            |pod| pod.mirror = true,
        ] {
            let mut pod = pod(Some("reader"));
            change(&mut pod);
            let Decision::Deny(denial) = rules.decide(&pod, NOW) else {
                panic!("{pod:?} was not refused");
            };
            assert!(denial.to_string().len() < 500, "{denial}");
        }
    }

    #[test]
    fn missing_rules_are_told_rather_than_what_they_would_have_said() {
        let mut rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
        rules.missing = Some("gone".into());
        for base in [rules.base.clone(), None] {
            rules.base = base;
            let Decision::Deny(denial) = rules.decide(&pod(Some("reader")), NOW) else {
                panic!("allowed");
            };
            assert_eq!((denial.layer, &*denial.reason), ("rules", "gone"));
        }
        assert_eq!(rules.decide(&pod(None), NOW), Decision::NoRole);
    }

    #[test]
    fn rule_09_labels_beyond_all_bounds_allow_nothing() {
        let huge: KeyValues = (0..10_000).map(|n| (format!("{n:06}"), "x")).collect();
        let mut rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
        for change in [
            (|pod, huge| pod.labels = huge) as fn(&mut Workload, KeyValues),
            |pod, huge| pod.annotations = huge,
        ] {
            let mut pod = pod(Some("reader"));
            change(&mut pod, huge.clone());
            let Decision::Deny(denial) = rules.decide(&pod, NOW) else {
                panic!("{pod:?} was not refused");
            };
            assert!(denial.reason.contains("larger than 32 KiB"), "{denial}");
        }
        assert!(is_allowed(&rules, "reader"));
        let namespace = Namespace {
            labels: huge,
            ..annotated(None, Some(".*"))
        };
        let compiled = NamespaceRules::new(&namespace, rules.base.as_ref(), PatternFormat::Glob);
        rules.namespaces = Arc::new([("default".into(), Arc::new(compiled))].into());
        assert!(!is_allowed(&rules, "reader"));
    }

    #[test]
    fn an_unseen_namespace_is_not_decided() {
        let mut pod = pod(Some("reader"));
        pod.namespace = "new".into();
        let rules = rules(annotated(None, Some(".*")), PatternFormat::Glob);
        assert_eq!(rules.decide(&pod, NOW), Decision::Undecided);
    }
}
