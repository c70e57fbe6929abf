//! Tests of the whole agent with stand-ins for STS, instance metadata and Kubernetes, using raw
//! requests from the pods' addresses. Test names refer to the promise that they verify: `pain_NN`
//! of kube2iam's and kiam's users, `rule_NN` and `threat_NN` of docs/security.
#![cfg(test)]
#![allow(
    clippy::too_many_lines,
    reason = "a test is one scenario, from its start to its end"
)]

mod answers;
mod clients;
mod container_credentials;
mod harness;
mod pains;
mod rules;
mod threats;
