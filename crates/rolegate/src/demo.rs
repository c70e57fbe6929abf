//! `rolegate demo`: runs the real agent on this machine, with stand-ins for AWS and Kubernetes.

mod ask;
mod netns;
mod network;
mod pods;
mod report;
mod screen;
mod stage;
mod step;
mod steps;
mod stolen;
mod webhook;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, FromArgMatches};
use rolegate_runtime::logging::{self, LogFormat};
use rolegate_runtime::signals::Shutdown;

use crate::agent::AgentFlags;
use crate::flags::invalid;
use crate::output::OutputFlags;
use network::Node;
use report::Report;
use screen::Screen;
use stage::Stage;

/// Maximum time for threads to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Exit code after SIGINT, as in shells.
const INTERRUPTED: u8 = 130;

/// Arguments of `rolegate demo`.
#[derive(Debug, Args)]
#[command(
    long_about = "Run the whole system on this machine, without AWS and without a cluster.\n\n\
The agent is the real one. STS (which verifies signatures), the instance metadata service and the \
Kubernetes API are stand-ins inside this process. As root, the node and its pods are network \
namespaces, and a real redirect leads to the agent. Otherwise, or with --loopback, pods are addresses of \
127.0.0.0/8. After the steps the demo keeps running, so that you can try more. It removes everything when it exits.",
    after_help = "Examples:\n  \
rolegate demo\n  \
rolegate demo --once -o json\n  \
rolegate demo -- --metadata-allow=user-data   (see what an agent flag opens)\n\n\
Exit codes: 0 all steps succeeded, 1 a step failed, 64 wrong usage, 130 interrupted."
)]
pub(crate) struct DemoArguments {
    /// Exit after the steps
    #[arg(long)]
    once: bool,
    /// Use loopback addresses even if network namespaces are available
    #[arg(long)]
    loopback: bool,
    #[command(flatten)]
    output: OutputFlags,
    /// Log the agent's activity on standard error
    #[arg(long)]
    verbose: bool,
    /// Flags of rolegate agent to try. Its environment variables apply too. The demo itself sets the addresses on which the agent listens and to which it connects
    #[arg(last = true, value_name = "AGENT FLAGS")]
    agent: Vec<OsString>,
}

/// Runs the demo.
pub(crate) fn run(arguments: &DemoArguments) -> anyhow::Result<ExitCode> {
    let flags = agent_flags(&arguments.agent)?;
    if arguments.verbose {
        logging::init(LogFormat::Text, "debug").context("cannot start the log")?;
    }
    let mut screen = Screen::new(arguments.output.output);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?;
    // Signal handlers come before anything that must be removed at exit.
    let mut shutdown = {
        let _context = runtime.enter();
        Shutdown::new().context("cannot install signal handlers")?
    };
    let (node, network) = node(arguments.loopback)?;
    screen.opening(&network);
    let played = runtime.block_on(perform(
        arguments.once,
        flags,
        &node,
        &mut screen,
        &mut shutdown,
    ));
    let Node { runtime, network } = node;
    runtime.shutdown_timeout(EXIT_TIMEOUT);
    drop(network);
    let code = played?;
    screen.closing();
    screen.check()?;
    Ok(code)
}

/// Parses flags of the agent as its own command line would.
fn agent_flags(given: &[OsString]) -> anyhow::Result<AgentFlags> {
    let mut definition = crate::cli::definition();
    definition.build();
    let agent = definition
        .find_subcommand("agent")
        .context("there is no command agent")?;
    let environment = |name: &str| std::env::var(name).ok();
    let lower = crate::sources::added(agent, given, &environment, &[]).map_err(invalid)?;
    let flags = agent
        .clone()
        .no_binary_name(true)
        .try_get_matches_from(lower.iter().chain(given))
        .and_then(|matches| AgentFlags::from_arg_matches(&matches))
        .map_err(|error| invalid(format!("invalid flags for the agent: {error}")))?;
    if flags.config.is_some() {
        return Err(invalid(
            "--config is not supported here: pass the agent's flags",
        ));
    }
    Ok(flags)
}

/// Creates the best available node, and a sentence that describes it.
fn node(loopback: bool) -> anyhow::Result<(Node, String)> {
    let why = if loopback {
        "as requested".into()
    } else {
        match Node::in_namespaces() {
            Ok(node) => {
                let sentence = "The node and its pods are network namespaces; a real redirect \
                                leads from 169.254.169.254 to the agent.";
                return Ok((node, sentence.into()));
            }
            Err(error) => format!("cannot create network namespaces: {error:#}"),
        }
    };
    let sentence = format!(
        "Pods are addresses of 127.0.0.0/8 ({why}); they use the agent's port instead of \
         169.254.169.254."
    );
    Ok((Node::on_loopback()?, sentence))
}

/// Runs the steps and, if requested, keeps running until a signal arrives.
async fn perform(
    once: bool,
    flags: AgentFlags,
    node: &Node,
    screen: &mut Screen,
    shutdown: &mut Shutdown,
) -> anyhow::Result<ExitCode> {
    let mut stage = Stage::open(node).await?;
    let played = tokio::select! {
        played = Box::pin(steps::play(&mut stage, screen, flags)) => Some(played),
        _ = shutdown.next() => None,
    };
    let outcome = match played {
        Some(Ok(steps)) => finish(once, steps, &mut stage, screen, shutdown).await,
        Some(Err(error)) => Err(error),
        None => Ok(ExitCode::from(INTERRUPTED)),
    };
    stage.close().await;
    outcome
}

async fn finish(
    once: bool,
    steps: Vec<report::Step>,
    stage: &mut Stage<'_>,
    screen: &mut Screen,
    shutdown: &mut Shutdown,
) -> anyhow::Result<ExitCode> {
    screen.summary(&steps);
    let report = Report {
        network: stage.network.name(),
        ok: steps.iter().all(|step| step.ok),
        steps,
        suggestions: if once {
            Vec::new()
        } else {
            steps::suggestions(stage)
        },
    };
    if !once {
        screen.suggestions(&report.suggestions);
    }
    screen.check()?;
    screen.report(&report)?;
    if !once {
        tokio::select! {
            _ = shutdown.next() => {}
            ended = stage.ended() => anyhow::bail!("the agent exited: {ended:?}"),
        }
    }
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
