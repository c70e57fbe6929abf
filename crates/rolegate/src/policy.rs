//! `rolegate policy`: what the rules say about pods, manifests and changes, told before anybody is
//! refused.

mod adopt;
mod agents;
mod check;
mod cluster;
mod convert;
mod explain;
mod export;
mod files;
mod flags;
mod ignore;
mod in_force;
mod kinds;
mod load;
mod names;
mod simulate;
mod suggest;
mod test;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

pub(crate) use flags::SharedFlags;

/// The exit code where somebody is refused or cut off.
const REFUSED: u8 = 3;

/// What `--help` says first.
pub(crate) const LONG_ABOUT: &str = "Ask what the rules say, before anybody is refused.\n\n\
Every answer comes from the same decision as the agents' and the webhook's. Rules and pods are read \
from the cluster of the kubeconfig, or from manifests; nothing is written anywhere. Without a \
RolegateConfig the flags of the running agents count, and each answer says what it rests on.";

/// Arguments of `rolegate policy`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  Why does a pod get no credentials?
    rolegate policy explain pod/api-0 -n shop
  Would these manifests be refused? For a pipeline:
    helm template . | rolegate policy check --rules rules/ -f - -o github
  Do my policies say what I think they say?
    rolegate policy test policies/
  Whom does a change of the rules cut off?
    rolegate policy simulate --rules rules/
  From flags to a RolegateConfig that says the same:
    rolegate policy adopt > config.yaml
  From open namespaces to default deny:
    rolegate policy suggest > grants.yaml

Exit codes: 0 allowed or nothing cut off, 1 failed, 3 refused, cut off, an unusable rule or a failing
test, 64 wrong usage.")]
pub(crate) struct PolicyArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Tell why a pod may have its role, or may not, and what would change that
    #[command(long_about = explain::LONG_ABOUT)]
    Explain(Box<explain::ExplainArguments>),
    /// Judge manifests as the webhook would judge what is done with them
    #[command(long_about = check::LONG_ABOUT)]
    Check(Box<check::CheckArguments>),
    /// Test rules by objects with the verdict that is expected, and by tests in Rego
    #[command(long_about = test::LONG_ABOUT)]
    Test(Box<test::TestArguments>),
    /// Tell which running pods a change of the rules cuts off, lets in or gives another session
    #[command(long_about = simulate::LONG_ABOUT)]
    Simulate(Box<simulate::SimulateArguments>),
    /// Write the tightest grants that cover what runs today
    #[command(long_about = suggest::LONG_ABOUT)]
    Suggest(Box<suggest::SuggestArguments>),
    /// Turn the namespaces' annotations of kube2iam and kiam into grants
    #[command(long_about = convert::LONG_ABOUT)]
    Convert(Box<convert::ConvertArguments>),
    /// Write the RolegateConfig that says what the agents' flags say
    #[command(long_about = adopt::LONG_ABOUT)]
    Adopt(Box<adopt::AdoptArguments>),
    /// Write the rules as objects that the API server enforces or needs
    #[command(long_about = export::LONG_ABOUT)]
    Export(Box<export::ExportArguments>),
}

#[cfg(test)]
impl PolicyArguments {
    /// The rules as the flags of `explain` say them.
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no thread can be started")?;
    runtime.block_on(async {
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
