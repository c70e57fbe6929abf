//! The container runtime's records of the addresses of pods can be read.

use super::super::facts::NodeFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::node) fn check(facts: &NodeFacts) -> Result<Outcome, Unread> {
    let dir = facts.cni_results_dir.display();
    let finding = match &facts.cni_results {
        Ok(number) if *number > 0 => return Ok(Outcome::ok(format!("{number} records in {dir}"))),
        Ok(_) if facts.pods.as_ref().is_ok_and(Vec::is_empty) => {
            return Err(Unread::Depends(format!("{dir} is empty, and no pod runs")));
        }
        Ok(_) => Finding::warning(format!(
            "{dir} is empty although pods run: pods on bridges get no credentials"
        )),
        Err(why) => Finding::warning(format!(
            "cannot read {dir}: {why}; pods on bridges get no credentials"
        )),
    };
    let advice = "mount the folder of the container runtime into the agent, and set --cni-results-dir if it is another one; network plugins without a bridge do not need it";
    Ok(finding.advice(advice).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::node::facts::tests::healthy;

    #[test]
    fn missing_records_are_found() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        for results in [Ok(0), Err("permission denied".to_owned())] {
            facts.cni_results = results;
            assert_eq!(check(&facts).unwrap().status(), Status::Warning);
        }
        facts.cni_results = Ok(0);
        facts.pods = Ok(Vec::new());
        assert!(check(&facts).is_err());
    }
}
