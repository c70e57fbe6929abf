//! No other program has rules for the metadata address.

use super::super::facts::NodeFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::node) fn check(facts: &NodeFacts) -> Result<Outcome, Unread> {
    let rules = facts.foreign.iter().map(|rule| {
        let text = &rule.rule;
        let finding = if rule.redirects {
            Finding::problem(format!(
                "another program, such as kube2iam or kiam, redirects the metadata address: {text}"
            ))
        } else {
            Finding::warning(format!(
                "a rule of another program names the metadata address: {text}"
            ))
        };
        match &rule.removal {
            Some(command) => finding.advice(format!("after that program is removed: {command}")),
            None => finding,
        }
    });
    let failed = facts.foreign_failed.iter();
    let failed = failed.map(|why| Finding::not_checked(format!("cannot list some rules: {why}")));
    Ok(Outcome::of(
        match facts.foreign.len() {
            0 => "no other program has rules for the metadata address".to_owned(),
            number => format!("{number} rules of other programs"),
        },
        rules.chain(failed).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use rolegate_redirect::ForeignRule;

    use super::*;
    use crate::check::Status;
    use crate::node::facts::tests::healthy;

    #[test]
    fn redirects_of_others_are_problems() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        let rule = |redirects| ForeignRule {
            rule: "nat: -A PREROUTING".into(),
            redirects,
            removal: Some("iptables -t nat -D PREROUTING".into()),
        };
        facts.foreign = vec![rule(false)];
        assert_eq!(check(&facts).unwrap().status(), Status::Warning);
        facts.foreign = vec![rule(true)];
        let outcome = check(&facts).unwrap();
        assert_eq!(outcome.status(), Status::Problem);
        assert!(
            outcome.findings[0]
                .advice
                .as_ref()
                .unwrap()
                .contains("iptables -t nat -D")
        );
        facts.foreign.clear();
        facts.foreign_failed = vec!["nft failed".into()];
        assert_eq!(check(&facts).unwrap().status(), Status::NotChecked);
    }
}
