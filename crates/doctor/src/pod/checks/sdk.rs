//! The SDK in the pod requests its credentials from the metadata address.

use super::super::facts::PodFacts;
use crate::check::{Finding, Outcome};
use crate::objects::Container;
use crate::reading::Unread;

/// Environment variables with which SDKs do not use the metadata address, or another one, and their
/// effect.
const VARIABLES: [(&str, &str); 6] = [
    ("AWS_ACCESS_KEY_ID", "the SDK uses these keys"),
    (
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "the SDK uses the pod's token (IRSA)",
    ),
    (
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "the SDK uses another endpoint (EKS Pod Identity)",
    ),
    (
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "the SDK uses the endpoint of ECS",
    ),
    (
        "AWS_EC2_METADATA_DISABLED",
        "the SDK does not use the metadata address",
    ),
    (
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        "the SDK uses another metadata address",
    ),
];

pub(in crate::pod) fn check(facts: &PodFacts) -> Result<Outcome, Unread> {
    let spec = &facts.existing()?.spec;
    let containers = spec.init_containers.iter().chain(&spec.containers);
    let findings: Vec<_> = containers.flat_map(findings).collect();
    Ok(Outcome::of(
        match findings.len() {
            0 => "no variable of the containers leads SDKs elsewhere",
            _ => "variables of the containers lead SDKs elsewhere",
        },
        findings,
    ))
}

fn findings(container: &Container) -> Vec<Finding> {
    let name = &container.name;
    let set = VARIABLES.iter().filter(|(variable, _)| {
        let mut env = container.env.iter();
        env.any(|one| one.name == *variable && !one.value.eq_ignore_ascii_case("false"))
    });
    set.map(|(variable, effect)| {
        let message = format!("container {name} sets {variable}: {effect}, and not rolegate");
        Finding::warning(message)
            .advice("remove the variable if the pod should get its role from rolegate")
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::facts::tests::{healthy, pod};
    use super::*;
    use crate::check::Status;

    #[test]
    fn variables_that_bypass_rolegate_are_named() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        let env = json!([
            {"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {}}},
            {"name": "AWS_EC2_METADATA_DISABLED", "value": "false"},
            {"name": "AWS_REGION", "value": "eu-west-1"},
        ]);
        facts.pod = Ok(Some(pod(
            json!({"containers": [{"name": "app", "env": env}]}),
        )));
        let outcome = check(&facts).unwrap();
        assert_eq!(
            (outcome.status(), outcome.findings.len()),
            (Status::Warning, 1)
        );
        assert!(
            outcome.findings[0]
                .message
                .starts_with("container app sets AWS_ACCESS_KEY_ID")
        );
    }
}
