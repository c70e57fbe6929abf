//! The access decision: whether a workload may assume a role, and with what session.
//!
//! [`RuleSet::decide`] is a pure function. Agents, admission and the command line all use it, so
//! their decisions cannot differ.

mod denial;

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::arn::{ArnError, BaseArn, RoleArn, listed_name, resolve};
use crate::attribution::{self, Attribution};
use crate::grant::{Associations, GrantSession};
use crate::layer::{AccessRequest, ActiveLayer, LayerId, LayerResult, Mode, Verdict};
use crate::namespace::NamespaceRules;
use crate::needs::Needs;
pub use crate::session::is_external_id;
use crate::session::{SessionKey, SessionLimits};
use crate::session_name::{SessionScope, session_name};
use crate::workload::Workload;

pub use denial::{Denial, DenialSource, RequestField};

/// A role of rolegate or of a node, which is denied to every pod regardless of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservedRole {
    /// The account; `None` matches every account.
    pub account: Option<String>,
    /// The name without its path. Names are unique within an account.
    pub name: String,
}

impl ReservedRole {
    /// Parses an ARN, which reserves the role of one account, or a name, which reserves it in every
    /// account.
    ///
    /// # Errors
    /// [`ArnError`] if the text is neither.
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let is_arn = text.starts_with("arn:");
        let role = if is_arn {
            RoleArn::parse(text)?
        } else {
            // The placeholder account is only needed to validate the name.
            let any = BaseArn::from_account("aws", "000000000000")?;
            resolve(text, Some(&any))?
        };
        Ok(Self {
            account: is_arn.then(|| role.account().to_owned()),
            name: role.name().to_owned(),
        })
    }

    /// Returns true if `role` is this role.
    pub fn is(&self, role: &RoleArn) -> bool {
        // IAM role names are case-insensitive.
        self.name.eq_ignore_ascii_case(role.name())
            && self
                .account
                .as_deref()
                .is_none_or(|account| account == role.account())
    }
}

/// A part of the rules that has not synced yet, without which no decision is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSynced {
    /// The cluster's configuration.
    Config,
    /// The AWS identity of this process.
    Identity,
    /// Namespaces.
    Namespaces,
    /// `RoleGrant`s, while layer `grants` is enforced.
    Grants,
    /// Rego policies, while layer `rego` is enforced.
    Policies,
}

impl NotSynced {
    /// Returns the message for readiness and denials, without a full stop.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "waiting for the cluster's RolegateConfig",
            Self::Identity => "rolegate's own AWS identity is not known yet",
            Self::Namespaces => "namespaces are not loaded yet",
            Self::Grants => "grants are not loaded yet",
            Self::Policies => "policies are not loaded yet",
        }
    }
}

/// An immutable snapshot of all inputs of a decision except the workload.
#[derive(Debug, Clone, Default)]
pub struct RuleSet {
    /// The base ARN that completes bare role names.
    pub base: Option<BaseArn>,
    /// The role of pods that request none, in namespaces without a default.
    pub default_role: Option<RoleArn>,
    /// Roles that are denied to every pod.
    pub reserved_roles: Vec<ReservedRole>,
    /// The set of pods that share a session.
    pub scope: SessionScope,
    /// Requested session duration, in seconds.
    pub session_seconds: u32,
    /// The enabled layers. All enforced ones must allow a request.
    pub layers: Vec<ActiveLayer>,
    /// The known namespaces.
    pub namespaces: Arc<HashMap<Arc<str>, Arc<NamespaceRules>>>,
    /// Maximum session duration that STS grants to rolegate, in seconds. Longer requests are
    /// lowered to it.
    pub max_session_seconds: Option<u32>,
    /// The name of the cluster, sent as a tag of every session for trust policies to check.
    pub cluster: Option<Arc<str>>,
    /// The attribution of sessions, unless a grant overrides it.
    pub attribution: Attribution,
    /// The associations of roles with service accounts, unless layer `grants` is off.
    pub associations: Arc<Associations>,
    /// The missing prerequisite of the rules, such as a deleted configuration. While it is set,
    /// every request is denied.
    pub missing: Option<Arc<str>>,
    /// The part of the rules that has not synced yet. While it is set, all decisions are pending.
    pub not_synced: Option<NotSynced>,
    /// The generation of the rules. Decisions of an earlier generation are outdated.
    pub generation: u64,
}

/// The result of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The workload may assume the role.
    Allow {
        /// The parameters of the STS call.
        key: SessionKey,
        /// The role name that the metadata endpoint lists.
        role_name: String,
        /// The rules that allowed the request, one for each enforced layer.
        rules: Arc<[String]>,
        /// Denials by layers in audit mode.
        audited: Vec<Denial>,
    },
    /// Neither the pod nor a default names a role.
    NoRole,
    /// The request is denied.
    Deny(Denial),
    /// The workload's namespace, the rules, or labels that a new rule reads have not been received
    /// yet.
    Pending,
}

/// A decision with the results that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// The requested role, if it could be resolved.
    pub role: Option<RoleArn>,
    /// The results of the enabled layers, in order.
    pub layer_results: Vec<LayerResult>,
}

impl Decision {
    /// Returns true if the decision depends on a temporary condition. It must then be renewed
    /// soon and must not be shared with other workloads.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Allow { audited, .. } => audited.iter().any(|denial| denial.transient),
            Self::Deny(denial) => denial.transient,
            Self::NoRole | Self::Pending => false,
        }
    }
}

impl RuleSet {
    /// Decides for a workload with its current annotations.
    pub fn decide(&self, workload: &Workload, now: Timestamp) -> Decision {
        self.explain(workload, now).decision
    }

    /// Decides, and returns the result of each layer as well.
    pub fn explain(&self, workload: &Workload, now: Timestamp) -> Explanation {
        let undecided = |decision| Explanation {
            decision,
            role: None,
            layer_results: Vec::new(),
        };
        if self.not_synced.is_some() {
            return undecided(Decision::Pending);
        }
        let Some(namespace) = self.namespaces.get(&workload.namespace) else {
            return undecided(Decision::Pending);
        };
        let (role, is_default) = match self.requested_role(workload, namespace) {
            Ok(Some(requested)) => requested,
            Ok(None) => return undecided(Decision::NoRole),
            Err(denial) => {
                // The request may only lack the base ARN of the missing configuration.
                let denial = match &self.missing {
                    Some(missing) => missing_rules(denial.role, missing),
                    None => denial,
                };
                return undecided(Decision::Deny(denial));
            }
        };
        let request = AccessRequest {
            workload,
            role: &role,
            is_default,
            namespace,
            now,
        };
        // A kubelet can create any number of mirror pods, so no layer is evaluated for them.
        let layers: &[ActiveLayer] = if workload.mirror { &[] } else { &self.layers };
        // Layers in audit mode do not change the decision, so it does not wait for their inputs.
        let has_inputs = |active: &&ActiveLayer| !active.layer.lacks(&request);
        let mut enforced = layers.iter().filter(|active| active.mode != Mode::Audit);
        if !enforced.all(|active| has_inputs(&active)) {
            return undecided(Decision::Pending);
        }
        let layer_results: Vec<_> = layers
            .iter()
            .filter(has_inputs)
            .map(|active| LayerResult {
                layer: active.layer.id(),
                mode: active.mode,
                verdict: active.layer.evaluate(&request),
            })
            .collect();
        let decision = self
            .combine(&request, &layer_results)
            .unwrap_or_else(Decision::Deny);
        Explanation {
            decision,
            role: Some(role),
            layer_results,
        }
    }

    /// Returns the fields of pods and namespaces that the enabled layers read.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        for active in &self.layers {
            needs.extend(&active.layer.needs());
        }
        needs
    }

    /// Returns the same rules without one layer, for callers that evaluate it separately.
    pub fn without(&self, layer: LayerId) -> Self {
        let mut rules = self.clone();
        rules.layers.retain(|active| active.layer.id() != layer);
        rules
    }

    /// Returns true if decisions can change with time alone.
    pub fn reads_time(&self) -> bool {
        self.layers.iter().any(|active| active.layer.reads_time())
    }

    /// Returns the requested role and whether it is the administrator's default. The pod's
    /// annotation takes precedence over the namespace's default, and that over the administrator's.
    fn requested_role(
        &self,
        workload: &Workload,
        namespace: &NamespaceRules,
    ) -> Result<Option<(RoleArn, bool)>, Denial> {
        let malformed = |role: &str, rule, reason: String| {
            let shown = crate::arn::shorten(role).escape_debug().to_string();
            Denial::new(shown, DenialSource::Request, rule, reason)
        };
        if let Some(requested) = &workload.role_request.role {
            if requested.is_empty() {
                return Ok(None);
            }
            return resolve(requested, self.base.as_ref())
                .map(|role| {
                    let is_default = self.default_role.as_ref() == Some(&role);
                    Some((role, is_default))
                })
                .map_err(|error| malformed(requested, "role annotation", error.to_string()));
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

    /// Combines the results of the layers with the checks that precede all layers.
    fn combine(
        &self,
        request: &AccessRequest<'_>,
        layer_results: &[LayerResult],
    ) -> Result<Decision, Denial> {
        self.precheck(request)?;
        let (workload, role) = (request.workload, request.role);
        let Allowance {
            rules,
            audited,
            granted,
        } = Allowance::of(role, layer_results)?;
        let attribution = granted.map_or(self.attribution, |granted| {
            self.attribution.with(granted.attribution)
        });
        let limits = self
            .limits(workload, granted, attribution)
            .map_err(|reason| Denial::new(role, DenialSource::Request, "session tags", reason))?;
        let deny_name = |denied_by, reason| {
            Denial::new(role, denied_by, "session name annotation", reason)
                .about(RequestField::SessionName)
        };
        let name = session_name(workload, attribution.scope(self.scope))
            .map_err(|error| deny_name(DenialSource::Request, error.to_string()))?;
        if let (Some(granted), Some(_)) = (granted, &workload.role_request.session_name)
            && !granted.names.is_empty()
            && !granted.names.iter().any(|pattern| pattern.matches(&name))
        {
            let reason = format!("the grant does not allow the session name {name}");
            return Err(deny_name(LayerId::Grants.into(), reason));
        }
        Ok(Decision::Allow {
            role_name: listed_name(role, self.base.as_ref()).to_owned(),
            rules: rules.into(),
            audited,
            key: SessionKey {
                role: role.clone(),
                name,
                external_id: workload.role_request.external_id.clone(),
                duration_seconds: granted
                    .and_then(|session| session.duration_seconds)
                    .unwrap_or(self.session_seconds)
                    .min(self.max_session_seconds.unwrap_or(u32::MAX)),
                limits,
                target: None,
            },
        })
    }

    /// Checks what is denied whatever the layers say.
    fn precheck(&self, request: &AccessRequest<'_>) -> Result<(), Denial> {
        let (workload, role) = (request.workload, request.role);
        let deny = |denied_by, rule, reason: &str| Denial::new(role, denied_by, rule, reason);
        if workload.mirror {
            return Err(deny(
                DenialSource::Request,
                "mirror pod",
                "mirror pods of static pods get no role",
            ));
        }
        if self.reserved_roles.iter().any(|reserved| reserved.is(role)) {
            return Err(deny(
                DenialSource::ReservedRole,
                "reserved role",
                "the role belongs to a node or to rolegate itself, so no pod may assume it",
            ));
        }
        if let Some(missing) = &self.missing {
            return Err(missing_rules(role, missing));
        }
        let texts = [
            (&workload.labels, "the pod's labels"),
            (&workload.annotations, "the pod's annotations for AWS roles"),
            (&request.namespace.labels, "the namespace's labels"),
        ];
        if let Some((_, what)) = texts.iter().find(|(values, _)| values.is_too_large()) {
            return Err(deny(
                DenialSource::Request,
                "labels and annotations",
                &format!("{what} exceed 8 KiB in total, so the rules cannot be evaluated"),
            ));
        }
        if let Some(id) = &workload.role_request.external_id
            && !is_external_id(id)
        {
            let denial = deny(
                DenialSource::Request,
                "external ID annotation",
                "the external ID must be 2 to 1224 letters, digits and _+=,.@:/- characters",
            );
            return Err(denial.about(RequestField::ExternalId));
        }
        Ok(())
    }

    /// Merges the grant's session settings with the attribution. Fails with a reason if STS would
    /// reject the result.
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
                "STS would reject the value of session tag {key}: it accepts up to 256 letters, \
                 digits, blanks and _.:/=+-@"
            ));
        }
        let added = tags.len();
        let granted = granted.map(|limits| &**limits);
        let all = granted
            .map(|limits| limits.tags.clone())
            .unwrap_or_default()
            .with(tags);
        if all.len() > attribution::MAX_TAGS {
            return Err(format!(
                "the grant has {} session tags and rolegate adds {added}, but STS accepts {} in \
                 total: ask your cluster's administrator to remove tags from the grant",
                all.len() - added,
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

/// The results of layers that allow a request together.
#[derive(Debug, Default)]
struct Allowance<'a> {
    /// The rules that allow it, one for each enforced layer.
    rules: Vec<String>,
    /// Denials by layers in audit mode.
    audited: Vec<Denial>,
    /// The session settings of the last layer that has some.
    granted: Option<&'a GrantSession>,
}

impl<'a> Allowance<'a> {
    /// Summarizes the results, or returns the denial of the first enforced layer that denies.
    fn of(role: &RoleArn, layer_results: &'a [LayerResult]) -> Result<Self, Denial> {
        let mut allowance = Self::default();
        for result in layer_results {
            match (result.mode, &result.verdict) {
                (Mode::Off, _) | (Mode::Audit, Verdict::Allow { .. }) => {}
                (Mode::Enforce, Verdict::Allow { rule, session }) => {
                    allowance.rules.push(rule.clone());
                    allowance.granted = session.as_deref().or(allowance.granted);
                }
                (
                    mode,
                    Verdict::Deny {
                        rule,
                        reason,
                        transient,
                    },
                ) => {
                    let denial = Denial {
                        transient: *transient,
                        ..Denial::new(role, result.layer, rule, reason)
                    };
                    if mode == Mode::Enforce {
                        return Err(denial);
                    }
                    allowance.audited.push(denial);
                }
            }
        }
        Ok(allowance)
    }
}

fn missing_rules(role: impl ToString, missing: &str) -> Denial {
    Denial::new(
        role,
        DenialSource::MissingRules,
        "rules are missing",
        missing,
    )
}

#[cfg(test)]
mod tests;
