//! `rolegate demo`: runs the real agent on this machine, with stand-ins for AWS and Kubernetes.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command, FromArgMatches};
use rolegate_agent::app::{AgentOptions, Mode};
use rolegate_demo::{AgentSettings, Closed, DemoOptions, Render, Report};
use rolegate_policy::document;
use rolegate_runtime::logging::{self, LogFormat};

use crate::agent::{AgentFlags, options};
use crate::flags::invalid;
use crate::output::{self, Format, OutputFlags};

/// Arguments of `rolegate demo`.
#[derive(Debug, Args)]
#[command(
    long_about = "Run the whole system on this machine, without AWS and without a cluster.\n\n\
The agent is the real one. STS (which verifies signatures), the instance metadata service and the \
Kubernetes API are stand-ins inside this process. As root, the node and its pods are network \
namespaces, and a real redirect leads to the agent. Otherwise, or with --loopback, each pod is an address in \
127.0.0.0/8. After the steps the demo keeps running, so that you can try more. It removes everything when it exits.",
    after_help = "Examples:\n  \
rolegate demo\n  \
rolegate demo --once -o json\n  \
rolegate demo -- --metadata-allow=user-data   (see what an agent flag opens)\n\n\
Exit codes: 0 all steps succeeded, 1 a step failed, 64 invalid usage, 130 interrupted."
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

/// Runs the demo. `definition` is the command line, which defines the agent's flags.
pub(crate) fn run(arguments: &DemoArguments, definition: Command) -> anyhow::Result<ExitCode> {
    let flags = agent_flags(&arguments.agent, definition)?;
    if arguments.verbose {
        logging::init(LogFormat::Text, "debug").context("cannot start the log")?;
    }
    let ended = rolegate_demo::run(DemoOptions {
        once: arguments.once,
        loopback: arguments.loopback,
        render: render(arguments.output.output),
        agent: Box::new(|settings| Box::pin(agent(flags, settings))),
    });
    ended.map_err(|error| {
        if error.is::<Closed>() {
            output::Closed.into()
        } else {
            error
        }
    })
}

/// Returns the function that formats the complete report; `None` for text.
fn render(format: Format) -> Option<Render> {
    match format {
        Format::Text | Format::Wide => None,
        Format::Name => Some(Box::new(|report: &Report| {
            let names = report.steps.iter().map(|step| format!("{}\n", step.name));
            Ok(names.collect())
        })),
        Format::Json => Some(Box::new(|report: &Report| {
            Ok(format!("{:#}\n", serde_json::to_value(report)?))
        })),
        Format::Yaml => Some(Box::new(|report: &Report| {
            Ok(document::yaml(&serde_json::to_value(report)?)?)
        })),
    }
}

/// Returns the agent's options from its flags, except those that the demo sets.
async fn agent(mut flags: AgentFlags, settings: AgentSettings) -> anyhow::Result<AgentOptions> {
    flags.kubernetes.api_server = Some(settings.api_server);
    flags.kubernetes.api_token = None;
    flags.kubernetes.api_token_file = None;
    flags.kubernetes.kubeconfig = None;
    flags.workloads = None;
    flags.node = Some(settings.node.into());
    flags.rules.namespace_restrictions = true;
    flags.metadata_addr = settings.metadata.to_string();
    flags.metrics_port = None;
    flags.metrics_address = Some(settings.admin);
    flags.iptables = false;
    flags.redirect_remove_at_exit = false;
    match settings.redirect {
        None => {
            flags.app_port = 0;
            flags.redirect = None;
        }
        Some(redirect) => {
            flags.app_port = redirect.port;
            flags.host_ip = Some(redirect.host_ip.into());
            flags.host_ipv6 = None;
            flags.host_interface = redirect.host_interface.into();
            flags.redirect = Some("auto".into());
        }
    }
    let options = options(flags).await?;
    match options.mode {
        Mode::Standalone(_) => Ok(options),
        Mode::Brokered(_) => Err(invalid("--broker: the demo's agent is standalone")),
    }
}

/// Parses flags of the agent as its own command line would.
fn agent_flags(given: &[OsString], mut definition: Command) -> anyhow::Result<AgentFlags> {
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
