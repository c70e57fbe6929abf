//! The node's metadata service responds.

use super::super::facts::NodeFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::node) fn check(facts: &NodeFacts) -> Result<Outcome, Unread> {
    Ok(match &facts.instance {
        Ok(instance) => Outcome::ok(format!("responds for instance {}", instance.id)),
        Err(why) => {
            let finding = Finding::problem(why.to_string());
            let advice = "on EC2, enable it: aws ec2 modify-instance-metadata-options --http-endpoint enabled; elsewhere, give rolegate credentials by its environment and set --base-role-arn";
            finding.advice(advice).into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::node::facts::tests::healthy;

    #[test]
    fn a_silent_metadata_service_is_found() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.instance = Err(Unread::TimedOut("x".into()));
        assert_eq!(check(&facts).unwrap().status(), Status::Problem);
    }
}
