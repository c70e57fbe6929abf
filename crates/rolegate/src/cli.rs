//! The command line as a whole.

use std::ffi::OsString;
use std::path::Path;
use std::sync::LazyLock;

use clap::{Arg, ArgAction, CommandFactory, Parser, Subcommand};
use rolegate_runtime::version::Version;

use crate::admission::AdmissionFlags;
use crate::advice::has_flag;
use crate::agent::AgentFlags;
use crate::broker::BrokerFlags;
use crate::controller::ControllerFlags;
use crate::ledger::LedgerArguments;
use crate::output::OutputFlags;
use crate::pod_identity_webhook::{self, PodIdentityWebhookFlags};
use crate::redirect::RedirectArguments;
#[cfg(feature = "tools")]
use crate::tools::Tool;

const ABOUT: &str = "Least-privilege AWS roles for Kubernetes pods";

const LONG_ABOUT: &str = "\
Gives Kubernetes pods least-privilege AWS roles.

On each node, `rolegate agent` serves the address of the instance metadata service. A pod
gets short-lived credentials for the role in its annotation, if the rules allow that role.
No pod can reach the node's own role. Pods, namespaces and trust policies that were made for
kube2iam work unchanged, and the agent accepts kube2iam's flags.";

const AFTER: &str = "\
Examples:
  Try the whole system on this machine, without a cluster and without AWS:
    rolegate demo
  Run as kube2iam's DaemonSet does (the default command is `agent`):
    rolegate --base-role-arn=arn:aws:iam::123456789012:role/ --iptables --host-interface=eni+ \\
      --host-ip=$HOST_IP --node=$NODE_NAME
  Find out what is wrong with an installation, or why a pod gets no credentials:
    rolegate doctor
    rolegate doctor --pod NAMESPACE/NAME
  Check that pods cannot reach the node's role:
    rolegate redirect check --netns /run/netns/cni-…

Exit codes: 0 done, 1 failed (`redirect check`: pods reach the real metadata service), 2 pods
are blocked (`redirect check`), 3 a denial or a finding (`policy`, `doctor`), or a value that needs a
decision (`migrate`), 64 invalid usage or configuration, 130 interrupted (`demo`).";

/// The end of the help of a program without tools.
const WITHOUT_TOOLS: &str = "\
This program has the commands that run in a cluster. `policy`, `doctor`, `migrate`, `demo` and `completion` are in the
complete program, whose image has the same name with `-tools` after its version.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "rolegate", version, about = ABOUT, long_about = LONG_ABOUT, after_help = AFTER)]
#[command(propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve AWS credentials to the pods of this node on the metadata address
    #[command(long_about = crate::agent::LONG_ABOUT)]
    Agent(Box<AgentFlags>),
    /// Validate and change objects at the API server, before a pod exists
    #[command(long_about = crate::admission::LONG_ABOUT)]
    Admission(Box<AdmissionFlags>),
    /// Add AWS credentials to pods, with the flags of EKS's pod identity webhook
    #[command(long_about = crate::pod_identity_webhook::LONG_ABOUT)]
    PodIdentityWebhook(Box<PodIdentityWebhookFlags>),
    /// Decide and hold sessions on behalf of the agents of all nodes
    // kiam's manifests start `/kiam server`.
    #[command(long_about = crate::broker::LONG_ABOUT, alias = "server")]
    Broker(Box<BrokerFlags>),
    /// Show which sessions a broker sent to which pods
    #[command(long_about = crate::ledger::LONG_ABOUT)]
    Ledger(LedgerArguments),
    /// Manage the webhook's certificate and registration, and the status of rules
    #[command(long_about = crate::controller::LONG_ABOUT)]
    Controller(Box<ControllerFlags>),
    /// Show, apply, remove or check the rules that redirect pods to the agent
    Redirect(RedirectArguments),
    #[cfg(feature = "tools")]
    #[command(flatten)]
    Tool(Tool),
    /// Print the version and commit of this program
    Version(OutputFlags),
    /// Print the flags that several commands share
    Options,
}

impl Command {
    /// Returns whether the process has secrets in memory: credentials, keys, tokens of the API
    /// server or messages between agents and brokers. The demo has only invented ones.
    pub(crate) fn holds_secrets(&self) -> bool {
        match self {
            Self::Agent(_)
            | Self::Admission(_)
            | Self::PodIdentityWebhook(_)
            | Self::Broker(_)
            | Self::Ledger(_)
            | Self::Controller(_) => true,
            #[cfg(feature = "tools")]
            Self::Tool(tool) => tool.holds_secrets(),
            Self::Redirect(_) | Self::Version(_) | Self::Options => false,
        }
    }
}

/// Returns the definition that the documentation and the parser share.
pub(crate) fn definition() -> clap::Command {
    let definition = Cli::command()
        .version(VERSION.as_str())
        .mut_subcommands(with_switches)
        .mut_subcommands(with_plain_name);
    let definition = if cfg!(feature = "tools") {
        definition
    } else {
        definition.after_help(WITHOUT_TOOLS)
    };
    PROCESSES.iter().fold(definition, |definition, name| {
        definition.mut_subcommand(name, with_first_flags)
    })
}

/// Returns the name of the program in help texts. kubectl runs `kubectl-rolegate` as its plug-in
/// `kubectl rolegate`; links of other names, such as kube2iam's, are for old manifests only.
pub(crate) fn program_name(program: Option<&OsString>) -> &'static str {
    let name = program.and_then(|program| Path::new(program).file_name());
    if name.is_some_and(|name| name == "kubectl-rolegate") {
        "kubectl rolegate"
    } else {
        "rolegate"
    }
}

/// The output of `--version`.
static VERSION: LazyLock<String> = LazyLock::new(|| Version::CURRENT.to_string());

/// Long-running commands.
pub(crate) const PROCESSES: [&str; 5] = [
    "agent",
    "broker",
    "admission",
    "pod-identity-webhook",
    "controller",
];

/// Flags that new users need first, in the order of the help, above all others.
const FIRST: [&str; 8] = [
    "base_role_arn",
    "host_interface",
    "namespace_restrictions",
    "layer",
    "redirect",
    "iptables",
    "host_ip",
    "node",
];

fn with_first_flags(command: clap::Command) -> clap::Command {
    let leads_pods = command
        .get_arguments()
        .any(|flag| flag.get_id() == "host_interface");
    // `mut_arg` would move a flag to the end, together with its heading.
    command.mut_args(|flag| {
        let place = FIRST.iter().position(|first| flag.get_id() == first);
        match place {
            // The host address of a broker is not a redirect target.
            Some(_) if flag.get_id() == "host_ip" && !leads_pods => flag,
            Some(place) => flag.help_heading("Set these first").display_order(place),
            None => flag,
        }
    })
}

/// Makes `--version` of each command print the program's name rather than the command's.
fn with_plain_name(command: clap::Command) -> clap::Command {
    command
        .display_name("rolegate")
        .mut_subcommands(with_plain_name)
}

fn with_switches(command: clap::Command) -> clap::Command {
    command.mut_args(switch).mut_subcommands(with_switches)
}

/// Accepts Go's syntax for boolean flags: `--debug` or `--debug=false`.
fn switch(flag: Arg) -> Arg {
    if !matches!(flag.get_action(), ArgAction::SetTrue) {
        return flag;
    }
    flag.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_value("false")
        .default_missing_value("true")
        .value_name("BOOL")
        .hide_possible_values(true)
        .hide_default_value(true)
}

/// Returns the command line that prints the help of the command in the arguments.
pub(crate) fn help_of(arguments: &[OsString]) -> String {
    let definition = Cli::command();
    let mut command = &definition;
    let mut text = program_name(arguments.first()).to_owned();
    for name in arguments.iter().skip(1) {
        let Some(inner) = command.find_subcommand(name) else {
            break;
        };
        text = format!("{text} {}", inner.get_name());
        command = inner;
    }
    text + " --help"
}

/// Inserts `agent` before its flags if there is no command. kube2iam has none, so its DaemonSet
/// works after only the image is changed. A program with the name of the EKS webhook has only its
/// flags.
pub(crate) fn with_implied_command(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let program = arguments.first().map(Path::new).and_then(Path::file_name);
    if program.is_some_and(|name| {
        pod_identity_webhook::PROGRAM_NAMES
            .iter()
            .any(|known| name == *known)
    }) {
        arguments.insert(1, "pod-identity-webhook".into());
        return arguments;
    }
    let definition = Cli::command();
    let agent = definition.find_subcommand("agent");
    let first = arguments.get(1);
    if let (Some(first), Some(agent)) = (first, agent)
        && has_flag(agent, first)
    {
        arguments.insert(1, "agent".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    #[test]
    fn the_eks_webhooks_command_line_is_accepted() {
        let kops = [
            "/webhook",
            "--in-cluster=false",
            "--namespace=kube-system",
            "--service-name=pod-identity-webhook",
            "--annotation-prefix=eks.amazonaws.com",
            "--token-audience=amazonaws.com",
            "--logtostderr",
            "--watch-config-map",
            "--sts-regional-endpoint",
            "--aws-default-region=eu-west-1",
            "--v=5",
        ];
        let every = [
            "/usr/bin/webhook",
            "--port=443",
            "--metrics-port=9999",
            "--kubeconfig=",
            "--kube-api=",
            "--tls-cert=/tls.crt",
            "--tls-key=/tls.key",
            "--tls-min-version=1.2",
            "--tls-cipher-suites=",
            "--in-cluster",
            "--service-name=x",
            "--namespace=eks",
            "--tls-secret=x",
            "--annotation-prefix=x",
            "--token-audience=x",
            "--token-mount-path=/x",
            "--token-expiration=86400",
            "--aws-default-region=",
            "--sts-regional-endpoint=false",
            "--watch-config-map=true",
            "--compose-role-arn=false",
            "--watch-container-credentials-config=/x",
            "--container-credentials-audience=x",
            "--container-credentials-token-mount-path=/x",
            "--container-credentials-token-volume-name=x",
            "--container-credentials-token-path=x",
            "--container-credentials-full-uri=http://x",
            "--service-account-lookup-grace-period=100ms",
            "--resync-period=60s",
            "--enable-debugging-handlers",
            "--alsologtostderr=false",
            "--log_dir=",
            "--log-file=x",
            "--stderrthreshold=2",
            "--vmodule=",
            "-v=2",
        ];
        for line in [&kops[..], &every] {
            let arguments = line.iter().map(OsString::from).collect();
            let arguments = with_implied_command(arguments);
            let matches = definition().try_get_matches_from(arguments).unwrap();
            assert_eq!(matches.subcommand_name(), Some("pod-identity-webhook"));
        }
        let version = ["/webhook", "--version"].map(OsString::from).to_vec();
        let version = definition().try_get_matches_from(with_implied_command(version));
        let kind = version.unwrap_err().kind();
        assert_eq!(kind, clap::error::ErrorKind::DisplayVersion);
    }

    #[test]
    fn the_same_flags_give_every_command_the_same_rules() {
        let flags = [
            "--base-role-arn=arn:aws:iam::123456789012:role/",
            "--default-role=basic",
            "--reserved-role=node",
            "--namespace-restrictions",
            "--namespace-restrictions-default=allow",
            "--layer=grants=audit",
            "--policy-namespaces=rules",
        ];
        for given in [&[][..], &flags] {
            let parse = |command: &[&str]| {
                let arguments = ["rolegate"].iter().chain(command).chain(given);
                Cli::parse_from(arguments).command
            };
            let configs = [
                match parse(&["agent"]) {
                    Command::Agent(flags) => flags.rules.config(),
                    other => panic!("{other:?}"),
                },
                match parse(&["admission"]) {
                    Command::Admission(flags) => flags.rules.config(),
                    other => panic!("{other:?}"),
                },
                match parse(&["controller"]) {
                    Command::Controller(flags) => flags.rules.config(),
                    other => panic!("{other:?}"),
                },
                match parse(&["policy", "explain", "--role=x"]) {
                    Command::Tool(Tool::Policy(arguments)) => arguments.rules_of_explain().unwrap(),
                    other => panic!("{other:?}"),
                },
            ];
            let [agent, others @ ..] = configs.map(Result::unwrap);
            for other in others {
                assert_eq!(other, agent);
            }
        }
    }

    #[test]
    fn flags_alone_mean_the_agent() {
        let implied = |arguments: &[&str]| {
            let arguments = std::iter::once("rolegate").chain(arguments.iter().copied());
            with_implied_command(arguments.map(Into::into).collect())
        };
        assert_eq!(implied(&["--node=a"]), ["rolegate", "agent", "--node=a"]);
        // With its alias.
        assert_eq!(implied(&["--host=a"]), ["rolegate", "agent", "--host=a"]);
        for same in [
            &["--help"][..],
            &["--version"],
            &["--man"],
            &["demo", "--once"],
            &[],
        ] {
            assert_eq!(implied(same).len(), same.len() + 1);
        }
    }

    #[test]
    fn flags_of_kiams_manifests_are_understood() {
        // As in the manifests and the chart of kiam.
        let agent = "rolegate agent --iptables --host-interface=cali+ --json-log --level=debug --port=8282 --host=10.0.0.1 \
            --no-iptables-remove --prometheus-listen-addr=0.0.0.0:9620 --prometheus-sync-interval=5s \
            --allow-route-regexp=^/latest/dynamic --gateway-timeout-creation=1s \
            --grpc-keepalive-time-duration=10s --grpc-keepalive-permit-without-stream";
        let Command::Agent(flags) = Cli::parse_from(agent.split_whitespace()).command else {
            panic!("{agent}");
        };
        assert_eq!(
            (
                flags.app_port,
                flags.iptables,
                flags.redirect_remove_at_exit
            ),
            (8282, true, false)
        );
        assert_eq!(flags.host_ip, Some([10, 0, 0, 1].into()));
        assert_eq!(flags.metrics_address, Some(([0, 0, 0, 0], 9620).into()),);
        let [note] = flags.kiam.notes()[..] else {
            panic!("{:?}", flags.kiam.notes());
        };
        assert!(note.contains("--metadata-allow"), "{note}");
        assert!(flags.kiam.check().is_ok());

        let Command::Agent(flags) =
            Cli::parse_from(["rolegate", "agent", "--server-address=kiam-server:443"]).command
        else {
            panic!("no agent");
        };
        let error = flags.kiam.check().unwrap_err().to_string();
        assert!(error.contains("--broker=https://"), "{error}");

        let server = "rolegate broker --bind=0.0.0.0:9610 --cert=/tls/s.pem --key=/tls/s-key.pem --ca=/tls/ca.pem \
            --certificate=files --role-base-arn=arn:aws:iam::123456789012:role/ --sync=1m --session=kiam \
            --session-duration=15m --session-refresh=5m --region=eu-west-1 --fetchers=16 \
            --assume-role-arn=arn:aws:iam::123456789012:role/server --prefetch-buffer-size=1000 --json-log --level=warn \
            --prometheus-listen-addr=0.0.0.0:9620 --disable-strict-namespace-regexp";
        let Command::Broker(flags) = Cli::parse_from(server.split_whitespace()).command else {
            panic!("{server}");
        };
        assert_eq!(
            flags.rules.config().unwrap().base.unwrap().as_str(),
            "arn:aws:iam::123456789012:role/"
        );
        let options = crate::broker::options(*flags).unwrap();
        let kiam = options.kiam.unwrap();
        assert_eq!(kiam.listen, ([0, 0, 0, 0], 9610).into());
        assert_eq!(kiam.client_ca, Path::new("/tls/ca.pem"));
        assert_eq!(options.sts.region.as_deref(), Some("eu-west-1"));
        assert_eq!(options.sts.chain.len(), 1);
        assert_eq!(
            (
                options.decisions.session_seconds,
                options.decisions.engine.in_flight
            ),
            (900, 16)
        );
    }
}
