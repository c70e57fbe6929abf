//! Explains why a workload may or may not have its role, and what would change that.

mod pods;
mod show;

use std::collections::BTreeMap;

use jiff::Timestamp;
use rolegate_core::decision::{Decision, Denial, DenialSource, RuleSet};
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_core::layer::{LayerId, LayerResult, Verdict};
use rolegate_core::session::SessionKey;
use rolegate_core::workload::Workload;
use rolegate_review::{ViolationSource, WebIdentity};
use serde::Serialize;
use serde_json::Value;

pub use pods::{Counts, ExplainedPods, explain_pods};

use crate::document;
use crate::missing::missing_grant;

/// The input of an explanation.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The agents' rules, with all layers.
    pub rules: &'a RuleSet,
    /// The grants, whether their layer is enabled or not.
    pub grants: &'a GrantsLayer,
    /// The Rego policies that are evaluated for the workload.
    pub policies: &'a [AskedPolicy],
    /// The workload.
    pub workload: &'a Workload,
    /// Its AWS web identity roles, if admission validates them.
    pub web_identity: Option<&'a WebIdentity>,
    /// A denial at admission, if it was evaluated.
    pub admission: Option<&'a Refusal>,
    /// The time of the decision.
    pub now: Timestamp,
}

/// The explanation. Its JSON is the output of `rolegate policy explain -o json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The workload.
    pub workload: Requester,
    /// The outcome.
    pub decision: Outcome,
    /// The role's ARN, if the requested role is valid.
    pub role: Option<String>,
    /// The results of the enabled layers, in order.
    pub layers: Vec<LayerVerdict>,
    /// The denial, if any.
    pub denial: Option<Refusal>,
    /// The denials of layers in audit mode.
    pub audited: Vec<Refusal>,
    /// A denial of the creation of such a pod by rules that agents do not evaluate.
    pub admission: Option<Refusal>,
    /// Web identity roles of the pod, which admission validates and agents never see.
    pub web_identity: Vec<TokenRole>,
    /// The session that would be requested from STS, if allowed.
    pub session: Option<Session>,
    /// The Rego policies and their enforcement points.
    pub policies: Vec<AskedPolicy>,
    /// The minimal grant that layer `grants` lacks, ready to apply.
    pub grant: Option<Value>,
    /// The denial that remains with that grant.
    pub refused_with_grant: Option<Refusal>,
    /// A sentence about the fix, if the role is denied.
    pub advice: Option<String>,
}

/// The workload that requests a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Requester {
    /// The namespace.
    pub namespace: String,
    /// The pod's name; empty for a hypothetical pod.
    pub name: String,
    /// The service account.
    pub service_account: String,
    /// The role as written in the annotation.
    pub requested_role: Option<String>,
}

/// True if the workload gets credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The role is allowed.
    Allowed,
    /// The role is denied.
    Denied,
    /// Neither the pod nor a default requests a role.
    NoRole,
    /// The namespace is unknown.
    UnknownNamespace,
    /// The rules allow the role, but the pod is on the host's network, where no credentials are served.
    HostNetwork,
}

/// The result of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerVerdict {
    /// The layer.
    pub layer: LayerId,
    /// `enforce` or `audit`.
    pub mode: String,
    /// True if it allows.
    pub allows: bool,
    /// The rule that decided.
    pub rule: String,
    /// The reason for a denial.
    pub reason: Option<String>,
}

/// A denial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The source of the denial.
    #[serde(rename = "layer")]
    pub denied_by: ViolationSource,
    /// The rule.
    pub rule: String,
    /// The reason, as one sentence.
    pub reason: String,
}

/// A role for which a pod has its own token.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRole {
    /// The role as written; `None` if the pod does not name it.
    pub role: Option<String>,
    /// The denial at admission, or that of a layer in audit mode.
    pub refusal: Option<Refusal>,
    /// The minimal grant that layer `grants` lacks for the role, ready to apply.
    pub grant: Option<Value>,
}

/// The parameters of the STS call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// `RoleArn`.
    pub role_arn: String,
    /// `RoleSessionName`.
    pub session_name: String,
    /// `DurationSeconds`.
    pub duration_seconds: u32,
    /// `ExternalId`.
    pub external_id: Option<String>,
    /// `Tags`.
    pub tags: BTreeMap<String, String>,
    /// True if all tags are transitive (`TransitiveTagKeys`).
    pub transitive_tags: bool,
    /// `SourceIdentity`.
    pub source_identity: Option<String>,
    /// `PolicyArns`.
    pub policy_arns: Vec<String>,
    /// `Policy`.
    pub policy: Option<String>,
}

/// A Rego policy and its enforcement points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedPolicy {
    /// Its ConfigMap, as `namespace/name`.
    pub name: String,
    /// True if admission evaluates it when the pod is created.
    pub admission: bool,
    /// True if agents evaluate it when the pod requests credentials.
    pub agent: bool,
    /// Its denials of the pod, or the reason why it could not be evaluated.
    pub denials: Vec<String>,
}

/// Explains the decision.
pub fn explain(question: &Question<'_>) -> Explained {
    let Question {
        rules,
        grants,
        policies,
        workload,
        web_identity,
        admission,
        now,
    } = *question;
    let explanation = rules.explain(workload, now);
    let missing = missing_grant(rules, grants, workload, now);
    let (mut session, mut denied_by, mut denial, mut audited) = (None, None, None, Vec::new());
    let decision = match &explanation.decision {
        Decision::Allow {
            key,
            audited: would,
            ..
        } => {
            session = Some(Session::from(key));
            audited = would.iter().map(Refusal::from).collect();
            if workload.host_network {
                Outcome::HostNetwork
            } else {
                Outcome::Allowed
            }
        }
        Decision::Deny(refused) => {
            denied_by = Some(refused.denied_by);
            denial = Some(Refusal::from(refused));
            Outcome::Denied
        }
        Decision::NoRole => Outcome::NoRole,
        Decision::Pending => Outcome::UnknownNamespace,
    };
    let advice = advice(decision, denied_by, workload, missing.is_some());
    Explained {
        workload: Requester {
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            service_account: workload.service_account.to_string(),
            requested_role: workload.role_request.role.as_deref().map(str::to_owned),
        },
        decision,
        role: explanation.role.map(|role| role.to_string()),
        layers: explanation
            .layer_results
            .iter()
            .map(LayerVerdict::from)
            .collect(),
        denial,
        audited,
        admission: admission.cloned(),
        web_identity: web_identity
            .map_or_else(Vec::new, |asked| token_roles(rules, grants, asked, now)),
        session,
        policies: policies.to_vec(),
        grant: missing
            .as_ref()
            .map(|missing| document::object(&missing.grant)),
        refused_with_grant: missing.and_then(|missing| missing.then.as_ref().map(Refusal::from)),
        advice,
    }
}

fn token_roles(
    rules: &RuleSet,
    grants: &GrantsLayer,
    asked: &WebIdentity,
    now: Timestamp,
) -> Vec<TokenRole> {
    let named = asked.asking.iter().map(|asking| {
        let refusal = match rules.decide(asking, now) {
            Decision::Deny(denial) => Some(Refusal::from(&denial)),
            Decision::Allow { audited, .. } => audited.first().map(Refusal::from),
            Decision::NoRole | Decision::Pending => None,
        };
        let missing = missing_grant(rules, grants, asking, now);
        TokenRole {
            role: asking.role_request.role.as_deref().map(str::to_owned),
            refusal,
            grant: missing.map(|missing| document::object(&missing.grant)),
        }
    });
    let unnamed = asked.unnamed.iter().map(|unnamed| TokenRole {
        role: None,
        refusal: Some(Refusal {
            denied_by: LayerId::Grants.into(),
            rule: "web identity".into(),
            reason: format!(
                "{} requests credentials from AWS without naming a role; set AWS_ROLE_ARN",
                unnamed.path
            ),
        }),
        grant: None,
    });
    named.chain(unnamed).collect()
}

fn advice(
    outcome: Outcome,
    denial: Option<DenialSource>,
    workload: &Workload,
    has_grant: bool,
) -> Option<String> {
    let namespace = &workload.namespace;
    let text = match outcome {
        Outcome::Allowed => return None,
        Outcome::NoRole => "annotate the pod with iam.amazonaws.com/role, if it needs one".into(),
        Outcome::HostNetwork => {
            "take the pod off the host's network, or give its program credentials in another way"
                .into()
        }
        Outcome::UnknownNamespace => {
            format!("the rules do not contain namespace {namespace}: create or add it")
        }
        Outcome::Denied => match denial? {
            DenialSource::Layer(LayerId::Namespace) => format!(
                "allow the role in the annotations of namespace {namespace}, which requires an \
                 administrator"
            ),
            DenialSource::Layer(LayerId::Grants) if has_grant => {
                "apply the grant below, if the pod should have the role".into()
            }
            DenialSource::Layer(LayerId::Grants) => {
                "change the named grants: another grant does not help".into()
            }
            DenialSource::Layer(LayerId::Rego) => {
                "change the pod as the policy requires, or change the policy".into()
            }
            DenialSource::ReservedRole => "request another role: no rule can allow this one".into(),
            DenialSource::MissingRules => {
                "fix the rules first: until then everything is denied".into()
            }
            DenialSource::Request | DenialSource::Unknown => "correct the pod's annotations".into(),
        },
    };
    Some(text)
}

impl From<&Denial> for Refusal {
    fn from(denial: &Denial) -> Self {
        Self {
            denied_by: denial.denied_by.into(),
            rule: denial.rule.clone(),
            reason: denial.reason.clone(),
        }
    }
}

impl From<&LayerResult> for LayerVerdict {
    fn from(result: &LayerResult) -> Self {
        let (allows, rule, reason) = match &result.verdict {
            Verdict::Allow { rule, .. } => (true, rule, None),
            Verdict::Deny { rule, reason, .. } => (false, rule, Some(reason.clone())),
        };
        Self {
            layer: result.layer,
            mode: result.mode.as_str().to_owned(),
            allows,
            rule: rule.clone(),
            reason,
        }
    }
}

impl From<&SessionKey> for Session {
    fn from(key: &SessionKey) -> Self {
        let limits = key.limits.as_deref();
        let tags = limits.into_iter().flat_map(|limits| limits.tags.iter());
        let policies = limits.into_iter().flat_map(|limits| &limits.policy_arns);
        Self {
            role_arn: key.role.to_string(),
            session_name: key.name.to_string(),
            duration_seconds: key.duration_seconds,
            external_id: key.external_id.as_deref().map(str::to_owned),
            tags: tags
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            transitive_tags: limits.is_some_and(|limits| limits.transitive),
            source_identity: limits
                .and_then(|limits| limits.source_identity.as_deref())
                .map(str::to_owned),
            policy_arns: policies.map(ToString::to_string).collect(),
            policy: limits
                .and_then(|limits| limits.policy.as_deref())
                .map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests;
