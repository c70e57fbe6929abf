//! The rules allow the role, by the decision function of agents and brokers.

use rolegate_core::annotation::ALLOWED_ROLES;
use rolegate_core::layer::LayerId;
use rolegate_policy::document;
use rolegate_policy::explain::{Explained, Outcome as Decision};

use super::super::facts::PodFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::pod) fn check(facts: &PodFacts) -> Result<Outcome, Unread> {
    facts.existing()?;
    let explained = facts.explained.as_ref()?;
    let role = explained.role.as_deref().unwrap_or("the role");
    Ok(match explained.decision {
        Decision::Allowed => {
            let audited = explained.audited.iter().map(|would| {
                Finding::warning(format!(
                    "layer {} would deny {role} if it were enforced: {}",
                    would.denied_by, would.reason
                ))
            });
            Outcome::of(format!("{role} is allowed"), audited.collect())
        }
        Decision::Denied => denied(facts, explained, role),
        Decision::NoRole => return Err(Unread::Depends("the pod requests no role".into())),
        Decision::HostNetwork => Finding::problem(
            "the rules allow the role, and pods on the host's network get no credentials",
        )
        .into(),
        Decision::UnknownNamespace => {
            Finding::not_checked("the namespace of the pod could not be read").into()
        }
    })
}

fn denied(facts: &PodFacts, explained: &Explained, role: &str) -> Outcome {
    let Some(denial) = &explained.denial else {
        return Finding::problem(format!("{role} is denied")).into();
    };
    let message = format!(
        "{role} is denied by {}: {}",
        denial.denied_by, denial.reason
    );
    let mut advice = explained.advice.clone().unwrap_or_default();
    if let Some(grant) = explained
        .grant
        .as_ref()
        .and_then(|grant| document::yaml(grant).ok())
    {
        advice = format!("{advice}\n{grant}");
    }
    if denial.denied_by.to_string() == LayerId::Namespace.as_str()
        && let Some(command) = allow(facts, role)
    {
        advice = format!("{advice}:\n{command}");
    }
    let finding = Finding::problem(message);
    if advice.is_empty() {
        return finding.into();
    }
    finding.advice(advice).into()
}

/// Returns the command that adds the role to those that the namespace allows.
fn allow(facts: &PodFacts, role: &str) -> Option<String> {
    let namespace = facts.namespace_object.as_ref().ok()?.as_ref()?;
    let text = namespace.metadata.annotations.get(ALLOWED_ROLES);
    let mut roles: Vec<String> = match text {
        Some(text) => serde_json::from_str(text).ok()?,
        None => Vec::new(),
    };
    roles.push(role.to_owned());
    let list = serde_json::to_string(&roles).ok()?;
    // In single quotes, a shell ends the text at the next one.
    (!list.contains('\'')).then(|| {
        let name = &facts.namespace;
        format!("kubectl annotate namespace {name} --overwrite {ALLOWED_ROLES}='{list}'")
    })
}

#[cfg(test)]
mod tests {
    use rolegate_policy::explain::Refusal;
    use serde_json::json;

    use super::super::super::facts::tests::{ROLE, explained, healthy};
    use super::*;
    use crate::check::Status;

    fn refusal(layer: LayerId) -> Refusal {
        Refusal {
            denied_by: layer.into(),
            rule: "default deny".into(),
            reason: "no grant covers it".into(),
        }
    }

    #[test]
    fn an_allowed_role_passes_and_audits_warn() {
        let mut facts = healthy();
        assert_eq!(
            check(&facts).unwrap(),
            Outcome::ok(format!("{ROLE} is allowed"))
        );
        facts.explained.as_mut().unwrap().audited = vec![refusal(LayerId::Grants)];
        assert_eq!(check(&facts).unwrap().status(), Status::Warning);
        facts.pod = Ok(None);
        assert!(check(&facts).is_err());
    }

    #[test]
    fn a_denial_comes_with_the_grant_or_the_annotation() {
        let mut facts = healthy();
        let mut denied = explained(Decision::Denied);
        denied.denial = Some(refusal(LayerId::Grants));
        denied.advice = Some("apply the grant below".into());
        denied.grant = Some(json!({"kind": "RoleGrant"}));
        facts.explained = Ok(denied.clone());
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.status(), Status::Problem);
        let advice = outcome.findings[0].advice.as_deref().unwrap();
        assert!(advice.contains("below\nkind: RoleGrant"), "{advice}");
        denied.denial = Some(refusal(LayerId::Namespace));
        denied.grant = None;
        facts.explained = Ok(denied);
        let namespace = facts.namespace_object.as_mut().unwrap().as_mut().unwrap();
        let annotations = &mut namespace.metadata.annotations;
        annotations.insert(ALLOWED_ROLES.into(), "[\"a\"]".into());
        let outcome = check(&facts).unwrap();
        let advice = outcome.findings[0].advice.as_deref().unwrap();
        let list = format!("allowed-roles='[\"a\",\"{ROLE}\"]'");
        assert!(advice.ends_with(&list), "{advice}");
    }

    #[test]
    fn an_unknown_decision_is_not_checked() {
        let mut facts = healthy();
        facts.explained = Ok(explained(Decision::UnknownNamespace));
        assert_eq!(check(&facts).unwrap().status(), Status::NotChecked);
        facts.decide(Err("no rights".into()));
        assert!(check(&facts).is_err());
    }
}
