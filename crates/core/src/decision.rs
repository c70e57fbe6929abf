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
use crate::needs::Needs;
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
        rules: Arc<[String]>,
        /// What layers in audit mode would have refused.
        audited: Vec<Denial>,
    },
    /// Neither the pod nor a default names a role.
    NoRole,
    /// Refused.
    Deny(Denial),
    /// The workload's namespace, or rules, or labels that a new rule reads, have not been seen yet.
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

impl Denial {
    /// What the pod's owner is told, by the answer to the pod and by an Event: what is refused, why, and
    /// what to do.
    pub fn to_owner(&self) -> String {
        match self.remedy() {
            Some(remedy) => format!("{self}; {remedy}"),
            None => self.to_string(),
        }
    }

    fn remedy(&self) -> Option<&'static str> {
        match self.layer {
            "namespace" => {
                Some("to allow it, whoever administers the namespace changes its annotations")
            }
            "own-role" => Some("name another role"),
            "request" => Some("correct the pod's annotations"),
            "rego" => {
                Some("change what the policy objects to, or ask your cluster's administrator")
            }
            // The reason says whom to ask.
            _ => None,
        }
    }
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
        // A kubelet makes as many mirror pods as it likes: no layer is asked about them.
        let layers: &[ActiveLayer] = if workload.mirror { &[] } else { &self.layers };
        // A layer in audit mode changes nothing, so what it lacks is not waited for.
        let is_able = |active: &&ActiveLayer| !active.layer.lacks(&ask);
        let mut enforced = layers.iter().filter(|active| active.mode != Mode::Audit);
        if !enforced.all(|active| is_able(&active)) {
            return undecided(Decision::Undecided);
        }
        let judgements: Vec<_> = layers
            .iter()
            .filter(is_able)
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

    /// Returns which fields of pods and namespaces the enabled layers read.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        for active in &self.layers {
            needs.extend(&active.layer.needs());
        }
        needs
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
                format!("{what} are larger than 8 KiB in all, so no rule can be asked about them"),
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
            rules: rules.into(),
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
mod tests;
