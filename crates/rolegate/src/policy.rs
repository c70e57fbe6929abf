//! `rolegate policy`: evaluates the rules for pods, manifests and changes before they take effect.

mod adopt;
mod agents;
mod check;
pub(crate) mod connect;
mod convert;
mod current;
pub(crate) mod errors;
mod explain;
mod export;
pub(crate) mod files;
mod flags;
mod simulate;
mod suggest;
mod test;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::run::block_on;

pub(crate) use explain::explain_pod;
pub(crate) use flags::{ReadFlags, SharedFlags};

/// The introduction of the help text.
pub(crate) const LONG_ABOUT: &str = "Evaluate the rules before they deny anything.\n\n\
Every answer uses the same decision function as the agents and the webhook. Rules and pods are read \
from the cluster of the kubeconfig, or from manifests. These commands never write to the cluster. Without a \
RolegateConfig the flags of the running agents apply. Each answer lists the rules that it is based on.";

/// Arguments of `rolegate policy`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  Why does a pod get no credentials?
    rolegate policy explain pod/api-0 -n shop
  Would the webhook deny these manifests? In a pipeline:
    helm template . | rolegate policy check --rules rules/ -f - -o github
  Do the policies decide as intended?
    rolegate policy test policies/
  Which pods lose their role if the rules change?
    rolegate policy simulate --rules rules/
  Convert flags into an equivalent RolegateConfig:
    rolegate policy adopt > config.yaml
  Move from open namespaces to default deny:
    rolegate policy suggest > grants.yaml

Exit codes: 0 no finding, 1 failed, 3 a denial, a pod that loses its role, an unusable rule or a failed
test, 64 invalid usage.")]
pub(crate) struct PolicyArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Explain why a pod may or may not have its role, and what would change that
    #[command(long_about = explain::LONG_ABOUT)]
    Explain(Box<explain::ExplainArguments>),
    /// Validate manifests as the webhook would
    #[command(long_about = check::LONG_ABOUT)]
    Check(Box<check::CheckArguments>),
    /// Test rules against objects with expected verdicts, and run tests in Rego
    #[command(long_about = test::LONG_ABOUT)]
    Test(Box<test::TestArguments>),
    /// Show which running pods a rule change denies, allows or gives another session
    #[command(long_about = simulate::LONG_ABOUT)]
    Simulate(Box<simulate::SimulateArguments>),
    /// Write minimal grants that cover the running pods
    #[command(long_about = suggest::LONG_ABOUT)]
    Suggest(Box<suggest::SuggestArguments>),
    /// Convert the namespace annotations of kube2iam and kiam into grants
    #[command(long_about = convert::LONG_ABOUT)]
    Convert(Box<convert::ConvertArguments>),
    /// Write a RolegateConfig that is equivalent to the agents' flags
    #[command(long_about = adopt::LONG_ABOUT)]
    Adopt(Box<adopt::AdoptArguments>),
    /// Write the rules as objects that the API server enforces or requires
    #[command(long_about = export::LONG_ABOUT)]
    Export(Box<export::ExportArguments>),
}

#[cfg(test)]
impl PolicyArguments {
    /// Returns the rules from the flags of `explain`.
    pub(crate) fn rules_of_explain(
        &self,
    ) -> Option<anyhow::Result<rolegate_core::config::RuleConfig>> {
        match &self.action {
            Action::Explain(arguments) => Some(arguments.rules()),
            _ => None,
        }
    }
}

/// Runs one of the actions.
pub(crate) fn run(arguments: PolicyArguments) -> anyhow::Result<ExitCode> {
    block_on(async {
        match arguments.action {
            Action::Explain(arguments) => explain::run(*arguments).await,
            Action::Check(arguments) => check::run(*arguments).await,
            Action::Test(arguments) => test::run(*arguments).await,
            Action::Simulate(arguments) => simulate::run(*arguments).await,
            Action::Suggest(arguments) => suggest::run(*arguments).await,
            Action::Convert(arguments) => convert::run(*arguments).await,
            Action::Adopt(arguments) => adopt::run(*arguments).await,
            Action::Export(arguments) => export::run(*arguments).await,
        }
    })
}
