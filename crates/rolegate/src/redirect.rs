//! `rolegate redirect`: manages the redirect rules manually.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use rolegate_redirect::check::{CheckState, NETNS_DIR, Outcome};
use rolegate_redirect::rules::{InterfacePattern, Spec};
use rolegate_redirect::{
    Backend, CNI_CONF_DIR, Choice, Detector, ENDPOINT_LINK, InterfaceChoice, Redirect,
    RedirectError, State, all_but_uplink, check, remove_all, routing_rules, routing_state,
};
use rolegate_runtime::signals::Shutdown;
use rustix::thread::CapabilitySet;

use crate::flags::invalid;
use crate::output::{self, Format, OutputFlags};
use crate::run::block_on;

/// Exit code of a check that finds pods blocked.
const BLOCKED: u8 = 2;
/// Interval at which `remove --wait` removes rules that were restored.
const REMOVE_INTERVAL: Duration = Duration::from_secs(2);

/// Arguments of `rolegate redirect`.
#[derive(Debug, Args)]
pub(crate) struct RedirectArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the rules in the kernel
    Show {
        /// Backend to show: auto, nftables, iptables, iptables-nft or iptables-legacy. auto: all that are installed
        #[arg(long, value_name = "BACKEND", default_value = "auto")]
        backend: String,
        #[command(flatten)]
        output: OutputFlags,
    },
    /// Apply the rules to the kernel, for example in a systemd unit that runs before the kubelet, so
    /// that no pod starts without them
    #[command(after_help = "\
Examples:
  rolegate redirect apply --host-interface=eni+ --host-ip=$HOST_IP

Exit codes: 0 the rules are in the kernel, 1 failed, 64 invalid usage.")]
    Apply {
        /// Backend to use: auto, nftables, iptables, iptables-nft or iptables-legacy
        #[arg(long, value_name = "BACKEND", default_value = "auto")]
        backend: String,
        /// Interfaces on which packets from pods arrive: a name, eni+ for a prefix, !eth0 for all but one, auto to find them. On a node without a CNI configuration, auto is all but the interface to the metadata service
        #[arg(long, value_name = "PATTERN", env = "ROLEGATE_HOST_INTERFACE")]
        host_interface: String,
        /// Directory of the CNI configuration, from which --host-interface=auto finds the interfaces of pods [default: /etc/cni/net.d]
        #[arg(long, value_name = "DIR", env = "ROLEGATE_CNI_CONF_DIR")]
        cni_conf_dir: Option<PathBuf>,
        /// Address of this host to which pods are redirected
        #[arg(long, value_name = "IP", env = "HOST_IP")]
        host_ip: IpAddr,
        /// IPv6 address of this host, if pods have IPv6 addresses
        #[arg(long, value_name = "IP", env = "HOST_IPV6")]
        host_ipv6: Option<Ipv6Addr>,
        /// Port of the agent
        #[arg(
            long,
            value_name = "PORT",
            env = "ROLEGATE_APP_PORT",
            default_value = "8181"
        )]
        app_port: u16,
    },
    /// Remove the rules. Pods then reach the node's role
    #[command(after_help = "\
Examples:
  rolegate redirect remove
  As a container that must not exit, such as in a DaemonSet:
    rolegate redirect remove --wait
  On a node without the program, when the agent is gone:
    kubectl debug node/NODE -i --profile=sysadmin --image=REGISTRY/rolegate:0.1.0 -- \\
      rolegate redirect remove

Exit codes: 0 removed, or there was nothing to remove, 1 failed, 64 invalid usage.")]
    Remove {
        /// Keep running until SIGTERM or SIGINT, and remove rules that an agent restores meanwhile
        #[arg(long)]
        wait: bool,
    },
    /// Check from a pod's network namespace which server answers at the metadata address, and
    /// whether this host has the routing rules
    #[command(after_help = "\
Examples:
  rolegate redirect check
  rolegate redirect check --netns /run/netns/cni-…

Exit codes: 0 the agent answers, 1 the real metadata service answers, or failed, 2 nothing answers
(pods are blocked), 64 invalid usage.")]
    Check {
        /// File of the network namespace, such as /run/netns/cni-… or /proc/PID/ns/net [default: the current one]
        #[arg(long, value_name = "FILE")]
        netns: Option<PathBuf>,
        #[command(flatten)]
        output: OutputFlags,
    },
}

/// Runs one of the actions.
pub(crate) fn run(arguments: RedirectArguments) -> anyhow::Result<ExitCode> {
    block_on(act(arguments.action))
}

async fn act(action: Action) -> anyhow::Result<ExitCode> {
    match action {
        Action::Show { backend, output } => show(&backend, output.output).await?,
        Action::Apply {
            backend,
            host_interface,
            cni_conf_dir,
            host_ip,
            host_ipv6,
            app_port,
        } => {
            let interface = match interface(&host_interface, cni_conf_dir, NETNS_DIR.into())? {
                Interface::Fixed(pattern) => pattern,
                Interface::Detect(detector) => at_boot(&detector).await?,
            };
            let pods = interface.to_string();
            let spec = spec(Some(host_ip), host_ipv6, app_port, interface)?;
            let backend = choice(&backend)?.resolve(&spec).await?;
            Redirect::new(backend, spec).apply().await?;
            output::raw(&format!(
                "the redirect is in place ({backend}, pods on {pods})\n"
            ))?;
        }
        Action::Remove { wait } => remove(wait).await?,
        Action::Check { netns, output } => return tried(netns.as_deref(), output.output).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes the rules. If `wait` is set, removes them again until a signal to exit arrives: an agent
/// that an update has not stopped yet restores them.
async fn remove(wait: bool) -> anyhow::Result<()> {
    // Before the removal, since process 1 of a container ignores signals that it doesn't handle.
    let shutdown = Shutdown::new().context("cannot handle signals")?;
    remove_once(true).await?;
    let mut shutdown = wait.then_some(shutdown);
    while let Some(shutdown) = &mut shutdown {
        tokio::select! {
            _ = shutdown.next() => break,
            () = tokio::time::sleep(REMOVE_INTERVAL) => remove_once(false).await?,
        }
    }
    Ok(())
}

/// Removes the rules and prints which. `report_none` prints a line if no rule exists.
async fn remove_once(report_none: bool) -> anyhow::Result<()> {
    let removed = remove_all().await?;
    let mut names: Vec<_> = removed.backends.iter().map(ToString::to_string).collect();
    if removed.routing_rules {
        names.push("routing rules".into());
    }
    if removed.link {
        names.push(format!("link {ENDPOINT_LINK}"));
    }
    if !names.is_empty() {
        let names = names.join(", ");
        output::raw(&format!(
            "removed ({names}): pods now reach the node's metadata service\n"
        ))?;
    } else if report_none {
        output::raw("nothing to remove\n")?;
    }
    Ok(())
}

/// Prints the rules in the kernel.
async fn show(backend: &str, format: Format) -> anyhow::Result<()> {
    let listings = kernel_rules(&backends(backend)?).await?;
    let routing = routing_rules().await?;
    if !matches!(format, Format::Text | Format::Wide) {
        let listings = listings.iter().map(|(backends, rules)| {
            let backends: Vec<_> = backends.split(", ").collect();
            serde_json::json!({"backends": backends, "rules": rules})
        });
        let found = serde_json::json!({
            "listings": listings.collect::<Vec<_>>(),
            "routingRules": routing.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        return output::value(format, &found);
    }
    let mut text = String::new();
    for (names, rules) in &listings {
        text += &format!("# {names}\n{}\n", rules.trim_end());
    }
    if !routing.is_empty() {
        text += "# routing rules\n";
        text.extend(routing.iter().map(|rule| format!("{rule}\n")));
    }
    if text.is_empty() {
        text += "the kernel has no rules of rolegate\n";
    }
    output::raw(&text)
}

/// Tests where the metadata address leads, and prints the result.
async fn tried(netns: Option<&Path>, format: Format) -> anyhow::Result<ExitCode> {
    let found = check::probe(netns).await?;
    // Without a file this is the pod's own namespace, and the rules are in the host's.
    let routing = match netns {
        Some(_) => Some(routing_state().await?),
        None => None,
    };
    if matches!(format, Format::Text | Format::Wide) {
        let routing = routing.map_or_else(String::new, |state| {
            format!("routing rules of this host: {}\n", words(state))
        });
        output::raw(&format!("{found}\n{routing}"))?;
    } else {
        let found = serde_json::json!({
            "state": found.state().as_str(),
            "v4": outcome(&found.v4),
            "v6": outcome(&found.v6),
            "routingRules": routing.map(name),
        });
        output::value(format, &found)?;
    }
    Ok(match found.state() {
        CheckState::Ok => ExitCode::SUCCESS,
        CheckState::Blocked => ExitCode::from(BLOCKED),
        CheckState::Open => ExitCode::FAILURE,
    })
}

fn outcome(outcome: &Outcome) -> serde_json::Value {
    serde_json::json!({
        "state": outcome.state().as_str(),
        "detail": outcome.to_string(),
    })
}

/// Returns the rules of the backends in the kernel. Each listing appears once, with the names of
/// the backends that show it: `iptables` is usually an alias of another backend.
async fn kernel_rules(backends: &[Backend]) -> anyhow::Result<Vec<(String, String)>> {
    let mut listings: Vec<(String, String)> = Vec::new();
    for backend in backends {
        let rules = match backend.show().await {
            Ok(rules) => rules,
            // A missing program has no rules, unless the user selected it.
            Err(RedirectError::Missing { .. }) if backends.len() > 1 => None,
            Err(error) => return Err(with_rights(error)),
        };
        let Some(rules) = rules else { continue };
        // Some lines of a listing name the program.
        let body = |text: &str| {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let same = listings
            .iter_mut()
            .find(|(_, other)| body(other) == body(&rules));
        match same {
            Some((names, _)) => names.push_str(&format!(", {backend}")),
            None => listings.push((backend.to_string(), rules)),
        }
    }
    Ok(listings)
}

/// Adds the missing capability to an error.
fn with_rights(error: RedirectError) -> anyhow::Error {
    let has_right = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
    let error = anyhow::Error::from(error);
    if has_right {
        error
    } else {
        error.context(
            "cannot read the kernel's rules: the capability CAP_NET_ADMIN is needed (run as root)",
        )
    }
}

/// Returns the state's machine-readable name.
fn name(state: State) -> &'static str {
    match state {
        State::InPlace => "inPlace",
        State::Missing => "missing",
        State::Altered => "altered",
    }
}

fn words(state: State) -> &'static str {
    match state {
        State::InPlace => "in place",
        State::Missing => "missing",
        State::Altered => "missing in part",
    }
}

/// The value of `--host-interface`, with what `auto` needs.
#[derive(Debug)]
pub(crate) enum Interface {
    /// The interfaces that the pattern matches.
    Fixed(InterfacePattern),
    /// `auto`.
    Detect(Detector),
}

/// Parses the pods' interfaces, from flags of either command.
pub(crate) fn interface(
    text: &str,
    conf_dir: Option<PathBuf>,
    netns_dir: PathBuf,
) -> anyhow::Result<Interface> {
    let choice = text
        .parse()
        .map_err(|error| invalid(format!("--host-interface: {error}")))?;
    match (choice, conf_dir) {
        (InterfaceChoice::Auto, conf_dir) => Ok(Interface::Detect(Detector {
            conf_dir: conf_dir.unwrap_or_else(|| CNI_CONF_DIR.into()),
            netns_dir,
        })),
        (InterfaceChoice::Fixed(pattern), None) => Ok(Interface::Fixed(pattern)),
        (InterfaceChoice::Fixed(_), Some(_)) => Err(invalid(
            "--cni-conf-dir has no effect without --host-interface=auto: omit it",
        )),
    }
}

/// Finds the pods' interfaces before the kubelet starts, possibly before the network plugin is
/// installed. Rules for all interfaces but the uplink refuse pods until the agent replaces them, so
/// a boot does not fail for want of a pattern.
async fn at_boot(detector: &Detector) -> anyhow::Result<InterfacePattern> {
    Ok(match detector.detect().await {
        Ok(found) => found.interface,
        Err(_) => all_but_uplink().await?,
    })
}

/// Returns the rules for this host, from flags of either command.
pub(crate) fn spec(
    host_ip: Option<IpAddr>,
    host_ipv6: Option<Ipv6Addr>,
    app_port: u16,
    interface: InterfacePattern,
) -> anyhow::Result<Spec> {
    let (v4, v6) = match host_ip {
        Some(IpAddr::V4(ip)) => (Some(ip), host_ipv6),
        Some(IpAddr::V6(ip)) if host_ipv6.is_none() => (None, Some(ip)),
        Some(IpAddr::V6(_)) => {
            return Err(invalid(
                "--host-ip and --host-ipv6 are both IPv6: give only one of them",
            ));
        }
        None => (None, host_ipv6),
    };
    Spec::new(v4, v6, app_port, interface).map_err(|error| invalid(format!("--redirect: {error}")))
}

/// Parses the name of a backend.
pub(crate) fn choice(text: &str) -> anyhow::Result<Choice> {
    text.parse().map_err(|error| invalid(format!("{error}")))
}

fn backends(text: &str) -> anyhow::Result<Vec<Backend>> {
    Ok(match choice(text)? {
        Choice::Fixed(backend) => vec![backend],
        Choice::Auto => Backend::ALL.to_vec(),
    })
}
