//! The API server's version is supported.

use super::super::facts::ClusterFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

/// The first minor version of Kubernetes 1 with match conditions for webhooks.
const MIN_MINOR: u32 = 28;

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    let version = facts.version.as_ref()?;
    let shown = &version.git_version;
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    };
    Ok(match (number(&version.major), number(&version.minor)) {
        (Some(major), Some(minor)) if (major, minor) < (1, MIN_MINOR) => Finding::warning(format!(
            "Kubernetes {shown} is older than 1.{MIN_MINOR}: the webhook needs match conditions"
        ))
        .advice("upgrade the control plane, or use rolegate without its webhook")
        .into(),
        (Some(_), Some(_)) => Outcome::ok(format!("Kubernetes {shown}")),
        _ => Finding::not_checked(format!("the version {shown:?} is not a number")).into(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::tests::healthy;
    use crate::objects::object;

    #[test]
    fn old_versions_are_found() {
        let mut facts = healthy();
        for (minor, expected) in [
            ("33+", Status::Ok),
            ("28", Status::Ok),
            ("27", Status::Warning),
            ("x", Status::NotChecked),
        ] {
            facts.version = Ok(object(
                json!({"major": "1", "minor": minor, "gitVersion": "v"}),
            ));
            assert_eq!(check(&facts).unwrap().status(), expected, "{minor}");
        }
    }
}
