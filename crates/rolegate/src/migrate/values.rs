//! `rolegate migrate values`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use rolegate_migrate::{Chart, MigrateError, NoteKind, ValuesFile, translate};
use rolegate_policy::document;
use rolegate_report::EXIT_FINDINGS;
use serde_json::Value;

use crate::flags::invalid;
use crate::flags::kubernetes::ReadingFlags;
use crate::output;
use crate::policy::connect::connect;
use crate::policy::errors::of_cluster;
use crate::policy::files as manifests;

/// The introduction of the help text.
pub(super) const LONG_ABOUT: &str = "Translate Helm values of kube2iam's and kiam's charts into values of rolegate's \
chart.\n\n\
Reads the values of kube2iam's chart or kiam's, of their own repositories or of helm/charts, and prints those of \
rolegate's chart. What the old chart's templates made of a value counts: kube2iam's chart turns \
`namespace-restrictions: false` into --namespace-restrictions, which means true. Comments at the top, and standard \
error, name each value that changes its meaning, is not needed, or cannot be carried over, with the reason. No secret \
is repeated.\n\n\
kube2iam can discover the node's role as the default role of pods. rolegate gives the node's role to no pod: with \
--pods the command names the pods that would lose it.";

/// The word of `--pods` for the cluster of the kubeconfig.
const CLUSTER: &str = "cluster";

/// Arguments of `rolegate migrate values`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate migrate values -f kube2iam-values.yaml > rolegate-values.yaml
  helm get values kiam -n kube-system -o yaml | rolegate migrate values -f -
  rolegate migrate values -f kube2iam-values.yaml --pods cluster

Exit codes: 0 everything carried over or not needed, 1 failed, 3 a value needs a decision, 64 invalid usage.")]
pub(super) struct ValuesArguments {
    /// Values file of the old chart, or - for standard input. May be repeated: files are merged as Helm merges them
    #[arg(short, long, value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,
    /// Chart of the values [default: recognised by their keys]
    #[arg(long, value_name = "CHART")]
    from: Option<ChartName>,
    /// Find the pods that name no role in this manifest or directory, or with the word cluster in the cluster of the kubeconfig. May be repeated
    #[arg(long, value_name = "PATH")]
    pods: Vec<PathBuf>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "yaml")]
    output: ValuesFormat,
    #[command(flatten)]
    reading: ReadingFlags,
}

/// The old charts.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ChartName {
    /// kube2iam's chart
    Kube2iam,
    /// kiam's chart
    Kiam,
}

impl From<ChartName> for Chart {
    fn from(name: ChartName) -> Self {
        match name {
            ChartName::Kube2iam => Self::Kube2iam,
            ChartName::Kiam => Self::Kiam,
        }
    }
}

/// The formats of values.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ValuesFormat {
    /// A values file, with the notes as comments
    Yaml,
    /// The chart, values and notes
    Json,
}

/// Runs the command.
pub(super) async fn run(arguments: ValuesArguments) -> anyhow::Result<ExitCode> {
    let is_cluster = |path: &&PathBuf| path.as_os_str() == CLUSTER;
    let listed = arguments.pods.iter().filter(|path| !is_cluster(path));
    manifests::validate(arguments.filename.iter().chain(listed))?;
    let contents = read(&arguments.filename)?;
    let files: Vec<_> = contents
        .iter()
        .map(|(name, content)| ValuesFile { name, content })
        .collect();
    let pods = pods(&arguments).await?;
    let chart = arguments.from.map(Chart::from);
    let translation = translate(&files, chart, pods.as_deref()).map_err(described)?;
    if pods.is_some() && !translation.uses_pods {
        output::note("--pods has no effect: these values give pods no default role of the node");
    }
    for note in &translation.notes {
        let kind = match note.kind {
            NoteKind::Action => "needs a decision: ",
            NoteKind::Changed | NoteKind::Dropped => "",
        };
        output::note(&format!("{kind}{}", note.line()));
        for pod in &note.pods {
            output::note(&format!("{}: {pod}", note.from));
        }
    }
    match arguments.output {
        ValuesFormat::Yaml => {
            let values = document::yaml(&translation.values)?;
            output::raw(&(translation.comments() + &values))?;
        }
        ValuesFormat::Json => output::json(&translation.json())?,
    }
    let code = if translation.is_complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FINDINGS)
    };
    Ok(code)
}

/// Reads the values files, with their names.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let one = |path: &PathBuf| {
        let name = match path.to_str() {
            Some("-") => "standard input".to_owned(),
            _ => path.display().to_string(),
        };
        Ok((name, manifests::bytes(path)?))
    };
    paths.iter().map(one).collect()
}

/// Returns the objects of `--pods`, if it is given.
async fn pods(arguments: &ValuesArguments) -> anyhow::Result<Option<Vec<Value>>> {
    if arguments.pods.is_empty() {
        return Ok(None);
    }
    let (clusters, paths): (Vec<_>, Vec<_>) = arguments
        .pods
        .iter()
        .cloned()
        .partition(|path| path.as_os_str() == CLUSTER);
    let mut found = Vec::new();
    if !paths.is_empty() {
        found.extend(manifests::objects(&paths)?.values().iter().cloned());
    }
    if !clusters.is_empty() {
        let cluster = connect(&arguments.reading).await.map_err(of_cluster)?;
        let users = cluster.users(false, None).await.map_err(of_cluster)?;
        found.extend(users);
    }
    Ok(Some(found))
}

/// Adds the flag that corrects an error.
pub(super) fn described(error: MigrateError) -> anyhow::Error {
    match error {
        MigrateError::UnknownChart(_) => {
            invalid(format!("{error}: set --from to kube2iam or kiam"))
        }
        error => error.into(),
    }
}
