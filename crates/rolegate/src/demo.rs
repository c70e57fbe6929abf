//! `rolegate demo`: the real agent at work on this machine, with stand-ins for AWS and Kubernetes.

mod ask;
mod cast;
mod gate;
mod netns;
mod network;
mod report;
mod screen;
mod stage;
mod steps;
mod stolen;
mod take;

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

/// How long threads may take to end.
const END: Duration = Duration::from_secs(2);
/// Ended by SIGINT, as shells say it.
const INTERRUPTED: u8 = 130;

/// Arguments of `rolegate demo`.
#[derive(Debug, Args)]
#[command(
    long_about = "Show the whole system at work on this machine, without AWS and without a cluster.\n\n\
The agent is the real one. STS (which checks signatures), the instance metadata service and the \
Kubernetes API are stand-ins inside this process. As root, the node and its pods are network \
namespaces and a real redirect leads to the agent; else, or with --loopback, pods are addresses of \
127.0.0.0/8. After the steps it stays up, for you to try more. Everything is removed at the end.",
    after_help = "Examples:\n  \
rolegate demo\n  \
rolegate demo --once -o json\n  \
rolegate demo -- --metadata-allow=user-data   (a setting of the agent: see what it opens)\n\n\
Exit codes: 0 all steps went as promised, 1 one did not, 64 wrong usage, 130 interrupted."
)]
pub(crate) struct DemoArguments {
    /// End after the steps
    #[arg(long)]
    once: bool,
    /// Use loopback addresses even where network namespaces can be made
    #[arg(long)]
    loopback: bool,
    #[command(flatten)]
    output: OutputFlags,
    /// Log what the agent does, on standard error
    #[arg(long)]
    verbose: bool,
    /// Flags of `rolegate agent` to try (its environment variables count too); where it listens and
    /// what it talks to is the demo's
    #[arg(last = true, value_name = "AGENT FLAGS")]
    agent: Vec<OsString>,
}

/// Plays the demo.
pub(crate) fn run(arguments: &DemoArguments) -> anyhow::Result<ExitCode> {
    let flags = agent_flags(&arguments.agent)?;
    if arguments.verbose {
        logging::init(LogFormat::Text, "debug").context("the log cannot be set up")?;
    }
    let mut screen = Screen::new(arguments.output.output);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no thread can be started")?;
    // Before anything is made that has to be removed.
    let mut shutdown = {
        let _context = runtime.enter();
        Shutdown::new().context("signals cannot be listened to")?
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
    runtime.shutdown_timeout(END);
    drop(network);
    let code = played?;
    screen.closing();
    screen.check()?;
    Ok(code)
}

/// Flags of the agent as its own command line would read them.
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
        .map_err(|error| invalid(format!("flags for the agent: {error}")))?;
    if flags.config.is_some() {
        return Err(invalid(
            "--config is not read here: give the agent's flags themselves",
        ));
    }
    Ok(flags)
}

/// The best node that can be had, and a sentence about it.
fn node(loopback: bool) -> anyhow::Result<(Node, String)> {
    let why = if loopback {
        "as asked for".into()
    } else {
        match Node::in_namespaces() {
            Ok(node) => {
                let sentence = "The node and its pods are network namespaces; a real redirect \
                                leads from 169.254.169.254 to the agent.";
                return Ok((node, sentence.into()));
            }
            Err(error) => format!("no network namespaces: {error:#}"),
        }
    };
    let sentence = format!(
        "Pods are addresses of 127.0.0.0/8 ({why}); they ask the agent's port in place of \
         169.254.169.254."
    );
    Ok((Node::on_loopback()?, sentence))
}

/// Plays the steps and stays up if wanted, until a signal comes.
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
            ended = stage.ended() => anyhow::bail!("the agent ended: {ended:?}"),
        }
    }
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
