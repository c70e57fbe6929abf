//! The agent as a whole over stand-ins for STS, instance metadata and Kubernetes, asked by raw
//! requests from the pods' addresses. Tests are named after the promise they hold: `pain_NN` of
//! kube2iam's and kiam's users, `rule_NN` of SECURITY.md, `threat_NN` of its list of attacks.
#![cfg(test)]

mod answers;
mod clients;
mod pains;
mod rules;
mod stage;
mod threats;
