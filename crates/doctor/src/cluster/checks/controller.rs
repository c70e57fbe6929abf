//! The replicas of the controller are ready, if it is installed.

use super::super::facts::ClusterFacts;
use super::super::process::Process;
use super::replicas::ready_if_installed;
use crate::check::Outcome;
use crate::reading::Unread;

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    ready_if_installed(facts, Process::Controller, "not installed")
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_installed_deployment_must_be_ready() {
        super::super::replicas::tests::needs_ready_replicas(super::check);
    }
}
