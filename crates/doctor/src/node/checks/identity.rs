//! The source of the AWS credentials of rolegate.

use super::super::facts::NodeFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::node) fn check(facts: &NodeFacts) -> Result<Outcome, Unread> {
    if let Some(name) = facts.credential_variables.first() {
        let message = format!(
            "the environment sets {name}: with the same environment, the agent's identity at AWS is not the node's role"
        );
        let advice = "roles must trust that identity; the agent logs its ARN at the start. Otherwise unset the variable";
        return Ok(Finding::warning(message).advice(advice).into());
    }
    let instance = facts.instance.as_ref()?;
    Ok(match &instance.role {
        Some(role) => Outcome::ok(format!(
            "role {role} of the instance, unless agents have a broker or credentials of their own"
        )),
        None => {
            let message = "the instance has no role: without a broker or credentials of its own, the agent cannot call STS";
            let advice = "attach an instance profile whose role may call sts:AssumeRole: docs/how-to/install.md, section 1";
            Finding::warning(message).advice(advice).into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::node::facts::tests::healthy;

    #[test]
    fn unexpected_identities_are_found() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.credential_variables = vec!["AWS_ACCESS_KEY_ID".into()];
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.status(), Status::Warning);
        assert!(outcome.summary.contains("AWS_ACCESS_KEY_ID"));
        facts.credential_variables.clear();
        facts.instance.as_mut().unwrap().role = None;
        assert_eq!(check(&facts).unwrap().status(), Status::Warning);
        facts.instance = Err(Unread::TimedOut("x".into()));
        assert!(check(&facts).is_err());
    }
}
