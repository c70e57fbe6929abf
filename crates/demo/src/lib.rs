//! The demo: the real agent on this machine, with stand-ins for AWS and Kubernetes.

mod ask;
mod netns;
mod network;
mod pods;
mod processes;
mod report;
mod screen;
mod stage;
mod step;
mod steps;
mod stolen;
mod webhook;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use rolegate_runtime::signals::Shutdown;

use network::Node;
use screen::Screen;
use stage::Stage;

pub use report::{Exchange, Report, Step, Suggestion};
pub use screen::{Closed, Render};
pub use stage::{AgentSettings, MakeOptions, RedirectSettings};

/// Maximum time for threads to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Exit code after SIGINT, as in shells.
const INTERRUPTED: u8 = 130;

/// The options of the demo.
pub struct DemoOptions {
    /// True to exit after the steps.
    pub once: bool,
    /// True to use loopback addresses even if network namespaces are available.
    pub loopback: bool,
    /// The format of the complete report; `None` to print the steps one by one as text.
    pub render: Option<Render>,
    /// The agent to run.
    pub agent: MakeOptions,
}

/// Runs the demo.
///
/// # Errors
/// Returns [`Closed`] if the reader of standard output is gone, and another error if the demo cannot
/// run. A failed step is not an error.
pub fn run(options: DemoOptions) -> anyhow::Result<ExitCode> {
    let mut screen = Screen::new(options.render);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?;
    // Signal handlers come before anything that must be removed at exit.
    let mut shutdown = {
        let _context = runtime.enter();
        Shutdown::new().context("cannot install signal handlers")?
    };
    let (node, network) = node(options.loopback)?;
    screen.opening(&network);
    let played = runtime.block_on(perform(
        options.once,
        options.agent,
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
    make: MakeOptions,
    node: &Node,
    screen: &mut Screen,
    shutdown: &mut Shutdown,
) -> anyhow::Result<ExitCode> {
    let mut stage = Stage::open(node).await?;
    let played = tokio::select! {
        played = Box::pin(steps::play(&mut stage, screen, make)) => Some(played),
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
    steps: Vec<Step>,
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
