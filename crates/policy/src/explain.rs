//! Why a workload may have its role, or may not, and what would change that.

mod pods;
mod show;

use std::collections::BTreeMap;

use jiff::Timestamp;
use rolegate_admission::WebIdentity;
use rolegate_core::decision::{Decision, Denial, RuleSet};
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_core::layer::{Judgement, Verdict};
use rolegate_core::session::SessionKey;
use rolegate_core::workload::Workload;
use serde::Serialize;
use serde_json::Value;

pub use pods::{Counts, ExplainedPods, explain_pods};

use crate::document;
use crate::missing::missing_grant;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The rules of doors, with all layers.
    pub rules: &'a RuleSet,
    /// The grants, whether their layer is on or not.
    pub grants: &'a GrantsLayer,
    /// The Rego policies that are asked about it.
    pub policies: &'a [AskedPolicy],
    /// Who wishes for what.
    pub workload: &'a Workload,
    /// What it asks of AWS itself, where the gate judges that.
    pub web_identity: Option<&'a WebIdentity>,
    /// What refuses at the gate alone, where somebody asked it.
    pub gate: Option<&'a Refusal>,
    /// The time to decide at.
    pub now: Timestamp,
}

/// The answer; as JSON it is what `rolegate policy explain -o json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// Who asked.
    pub workload: Asker,
    /// The outcome.
    pub decision: Outcome,
    /// The role's ARN, where one was named and can be one.
    pub role: Option<String>,
    /// What each layer that is on said, in order.
    pub layers: Vec<LayerVerdict>,
    /// What refused, if something did.
    pub denial: Option<Refusal>,
    /// What layers in audit mode would refuse.
    pub audited: Vec<Refusal>,
    /// What refuses the creation of such a pod, though doors are not asked about it.
    pub gate: Option<Refusal>,
    /// Roles that the pod asks AWS for itself, which the gate judges and doors never see.
    pub web_identity: Vec<TokenRole>,
    /// The session that would be asked of STS, if allowed.
    pub session: Option<Session>,
    /// The Rego policies, and where they are asked.
    pub policies: Vec<AskedPolicy>,
    /// The smallest grant that layer `grants` lacks, ready to apply.
    pub grant: Option<Value>,
    /// What refuses even with that grant.
    pub refused_with_grant: Option<Refusal>,
    /// What to do, in a sentence, where it is not allowed.
    pub advice: Option<String>,
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Asker {
    /// The namespace.
    pub namespace: String,
    /// The pod's name; empty in a thought experiment.
    pub name: String,
    /// The service account.
    pub service_account: String,
    /// The role as written in the annotation.
    pub wished_role: Option<String>,
}

/// Whether there will be credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Yes.
    Allowed,
    /// No: refused.
    Denied,
    /// No: no role is named, by the pod or by a default.
    NoRole,
    /// No: there is no such namespace.
    UnknownNamespace,
}

/// What one layer said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerVerdict {
    /// The layer: `namespace`, `grants` or `rego`.
    pub layer: String,
    /// `enforce` or `audit`.
    pub mode: String,
    /// Whether it allows.
    pub allows: bool,
    /// The rule that decided.
    pub rule: String,
    /// Why it refuses.
    pub reason: Option<String>,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The layer that refused, or `request`, `own-role` or `rules` for what comes before layers.
    pub layer: String,
    /// The rule.
    pub rule: String,
    /// One sentence.
    pub reason: String,
}

/// A role for which a pod has a token of its own.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRole {
    /// The role as written; none where the pod does not name it.
    pub role: Option<String>,
    /// What refuses it at the gate, or would in audit mode.
    pub refusal: Option<Refusal>,
    /// The smallest grant that layer `grants` lacks for it, ready to apply.
    pub grant: Option<Value>,
}

/// What would be asked of STS.
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
    /// Whether all tags are transitive (`TransitiveTagKeys`).
    pub transitive_tags: bool,
    /// `SourceIdentity`.
    pub source_identity: Option<String>,
    /// `PolicyArns`.
    pub policy_arns: Vec<String>,
    /// `Policy`.
    pub policy: Option<String>,
}

/// A Rego policy, and where it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedPolicy {
    /// Its ConfigMap, `namespace/name`.
    pub name: String,
    /// Whether the gate asks it when the pod is created.
    pub gate: bool,
    /// Whether doors ask it when the pod asks for credentials.
    pub door: bool,
    /// What it says against the pod, or why it could not be asked.
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
        gate,
        now,
    } = *question;
    let explanation = rules.explain(workload, now);
    let missing = missing_grant(rules, grants, workload, now);
    let (mut session, mut denial, mut audited) = (None, None, Vec::new());
    let decision = match &explanation.decision {
        Decision::Allow {
            key,
            audited: would,
            ..
        } => {
            session = Some(Session::from(key));
            audited = would.iter().map(Refusal::from).collect();
            Outcome::Allowed
        }
        Decision::Deny(refused) => {
            denial = Some(Refusal::from(refused));
            Outcome::Denied
        }
        Decision::NoRole => Outcome::NoRole,
        Decision::Undecided => Outcome::UnknownNamespace,
    };
    let advice = advice(decision, denial.as_ref(), workload, missing.is_some());
    Explained {
        workload: Asker {
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            service_account: workload.service_account.to_string(),
            wished_role: workload.wish.role.as_deref().map(str::to_owned),
        },
        decision,
        role: explanation.role.map(|role| role.to_string()),
        layers: explanation
            .judgements
            .iter()
            .map(LayerVerdict::from)
            .collect(),
        denial,
        audited,
        gate: gate.cloned(),
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
            Decision::NoRole | Decision::Undecided => None,
        };
        let missing = missing_grant(rules, grants, asking, now);
        TokenRole {
            role: asking.wish.role.as_deref().map(str::to_owned),
            refusal,
            grant: missing.map(|missing| document::object(&missing.grant)),
        }
    });
    let unnamed = asked.unnamed.iter().map(|unnamed| TokenRole {
        role: None,
        refusal: Some(Refusal {
            layer: "grants".into(),
            rule: "web identity".into(),
            reason: format!(
                "{} asks AWS for a role that the pod does not name; set AWS_ROLE_ARN to it",
                unnamed.path
            ),
        }),
        grant: None,
    });
    named.chain(unnamed).collect()
}

fn advice(
    outcome: Outcome,
    denial: Option<&Refusal>,
    workload: &Workload,
    has_grant: bool,
) -> Option<String> {
    let namespace = &workload.namespace;
    let text = match outcome {
        Outcome::Allowed => return None,
        Outcome::NoRole => "annotate the pod with iam.amazonaws.com/role, if it needs one".into(),
        Outcome::UnknownNamespace => {
            format!("there is no namespace {namespace} in these rules: create or add it")
        }
        Outcome::Denied => match denial?.layer.as_str() {
            "namespace" => format!(
                "allow the role in the annotations of namespace {namespace}, which an \
                 administrator may do"
            ),
            "grants" if has_grant => {
                "apply the grant below, if the pod should have the role".into()
            }
            "grants" => "change the grants that are named: a further one does not help".into(),
            "rego" => "change what the policy objects to, or the policy".into(),
            "own-role" => "name another role: no rule allows this one".into(),
            "rules" => "bring the rules in order first: until then everything is refused".into(),
            _ => "correct the pod's annotations".into(),
        },
    };
    Some(text)
}

impl From<&Denial> for Refusal {
    fn from(denial: &Denial) -> Self {
        Self {
            layer: denial.layer.to_owned(),
            rule: denial.rule.clone(),
            reason: denial.reason.clone(),
        }
    }
}

impl From<&Judgement> for LayerVerdict {
    fn from(judgement: &Judgement) -> Self {
        let (allows, rule, reason) = match &judgement.verdict {
            Verdict::Allow { rule, .. } => (true, rule, None),
            Verdict::Deny { rule, reason, .. } => (false, rule, Some(reason.clone())),
        };
        Self {
            layer: judgement.layer.to_owned(),
            mode: judgement.mode.as_str().to_owned(),
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
