//! `rolegate policy simulate`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use rolegate_policy::overlay::is_core;
use rolegate_policy::simulate::simulate;

use super::flags::ReadFlags;
use super::load::Objects;
use super::output::{self, Format};
use super::{REFUSED, files};

/// What `--help` says first.
pub(super) const LONG_ABOUT: &str = "Tell which running pods a change of the rules cuts off, lets in or gives another \
session, and which the webhook would refuse when they are made again, before it is applied.\n\n\
The objects of --rules (grants, configuration, namespaces, ConfigMaps of policies) are laid over those \
that are there: one of the same name is replaced, others stay. Pods and current rules are those of the \
cluster, or of manifests with -f, such as `kubectl get pods,namespaces,rolegrants -A -o yaml`.";

/// Arguments of `rolegate policy simulate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy simulate --rules grants.yaml
  rolegate policy simulate --rules rules/ --replace -o json
  rolegate policy simulate --rules grants.yaml -f dump.yaml

Exit codes: 0 nobody is cut off, 1 failed, 3 somebody is cut off or refused when made again, 64 wrong usage.")]
pub(super) struct SimulateArguments {
    /// Manifest, folder or - with the rules as they would be; may be repeated
    #[arg(long, value_name = "PATH", required = true)]
    rules: Vec<PathBuf>,
    /// Current rules and pods from this manifest or folder instead of the cluster; may be repeated
    #[arg(short, long, value_name = "PATH")]
    filename: Vec<PathBuf>,
    /// Take grants, configuration and ConfigMaps away that --rules does not name
    #[arg(long)]
    replace: bool,
    /// How the answer is written
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    read: ReadFlags,
}

/// Simulates.
pub(super) async fn run(arguments: SimulateArguments) -> anyhow::Result<ExitCode> {
    let reading = arguments.read.reading()?;
    files::validate(arguments.rules.iter().chain(&arguments.filename))?;
    let change = Objects::of_files(&arguments.rules)?;
    // A mistake in the change is told with its line before the cluster is asked.
    change.load(&reading)?;
    let client = arguments.read.client();
    let current = Objects::from(&arguments.filename, &client, &reading).await?;
    let overlaid = |current: &Objects| current.overlaid(&change, arguments.replace);
    // Policies may ask about everything of a pod.
    let whole =
        current.load(&reading)?.asks_at_gate() || overlaid(&current).load(&reading)?.asks_at_gate();
    let current = current.with_users(&client, whole).await?;
    let before = current.load(&reading)?;
    let after = overlaid(&current).load(&reading)?;
    for (when, notes) in [("now", &before.notes), ("then", &after.notes)] {
        for note in notes {
            output::note(&format!("{when}: {note}"));
        }
    }
    if after.asks_at_gate() {
        output::note(
            "policies of the gate are asked about the pods alone here: ask about Deployments and \
             their like with `rolegate policy check`",
        );
    }
    let now = Timestamp::now();
    let (rules, then) = (&before.snapshot.rules, &after.snapshot.rules);
    let mut simulation = simulate(rules, then, &before.workloads, now);
    let pods = current
        .values()
        .iter()
        .filter(|value| is_core(value, "Pod"));
    simulation.add_made_again(&before.gate(&reading), &after.gate(&reading), pods, now);
    output::answer(arguments.output, &simulation, || simulation.text())?;
    Ok(
        if simulation.cut_off.is_empty() && simulation.refused_when_made_again.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(REFUSED)
        },
    )
}
