//! `rolegate policy adopt`.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use rolegate_api::{CONFIG_NAME, RolegateConfig};
use rolegate_core::config::RuleConfig;
use rolegate_core::text::plain;
use rolegate_inventory::in_force::{AgentFlags, Deciding, OF_CONFIG};
use rolegate_kube::cluster_config::ConfigMode;
use rolegate_policy::document;

use super::agents::AgentsAt;
use super::connect::connect;
use super::errors::of_cluster;
use crate::flags::kubernetes::ReadingFlags;
use crate::output::{self, ObjectOutputFlags};

/// The introduction of the help text.
pub(super) const LONG_ABOUT: &str = "Write a RolegateConfig that is equivalent to the agents' flags.\n\n\
Reads the flags of the agents' DaemonSet or, if agents use a broker, of the brokers' Deployment, and \
prints a RolegateConfig with which every pod keeps its current role. It writes nothing to the \
cluster. Settings without an equivalent in a RolegateConfig are listed in comments and on standard error.";

/// Arguments of `rolegate policy adopt`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy adopt > config.yaml
  rolegate policy simulate --rules config.yaml
  kubectl apply -f config.yaml

Exit codes: 0 written, 1 the flags are not known, or there is a RolegateConfig already, 64 invalid usage.")]
pub(super) struct AdoptArguments {
    #[command(flatten)]
    output: ObjectOutputFlags,
    #[command(flatten)]
    reading: ReadingFlags,
    #[command(flatten)]
    agents: AgentsAt,
}

/// Runs the command.
pub(super) async fn run(arguments: AdoptArguments) -> anyhow::Result<ExitCode> {
    let cluster = connect(&arguments.reading).await.map_err(of_cluster)?;
    let read = arguments.agents.read(&cluster).await;
    let read = read.map_err(|why| anyhow!("cannot determine the flags of the agents: {why}"))?;
    let (deciding, flags) = (read.flags.validated()?, read.origin);
    let has_config = async || cluster.has_config().await.map_err(of_cluster);
    if deciding.cluster_config != ConfigMode::Off && has_config().await? {
        bail!(
            "a RolegateConfig exists already and overrides the flags: `kubectl get \
             rolegateconfig {CONFIG_NAME} -o yaml` shows it"
        );
    }
    let left_out = left_out(&flags, &deciding)?;
    let config = RolegateConfig::from(&deciding.flags);
    let read =
        RuleConfig::try_from(&config).context("cannot express the flags as a RolegateConfig")?;
    if read != deciding.flags {
        bail!(
            "internal error: cannot express the flags as a RolegateConfig; please report this bug with \
             the flags of the agents"
        );
    }
    let mut text = String::new();
    for workload in &flags.workloads {
        writeln!(text, "# Equivalent to the flags of {workload}.")?;
    }
    for sentence in &left_out {
        output::note(sentence);
        writeln!(text, "# note: {}", plain(sentence))?;
    }
    let config = serde_json::to_value(config).context("cannot serialize the configuration")?;
    text += &document::yaml(&config)?;
    output::objects(arguments.output.output, &config, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns a sentence for each setting that a `RolegateConfig` does not carry over.
///
/// # Errors
/// Returns an error if a value that affects decisions is unknown.
fn left_out(flags: &AgentFlags, deciding: &Deciding) -> anyhow::Result<Vec<String>> {
    let decides = |id: &str| {
        OF_CONFIG.contains(&id) || matches!(id, "cluster_config" | "default_role" | "reserved_role")
    };
    let mut sentences = flags.doubts.clone();
    for one in &flags.unknown {
        let (flag, from) = (&one.flag, &one.from);
        if decides(&one.id) {
            bail!(
                "{flag} comes from {from}, which this command does not read: write its value into the pod template \
                 first"
            );
        }
        if one.id == "base_role_arn" {
            sentences.push(format!(
                "baseRoleArn is omitted, since {flag} comes from {from}: agents still have it, but the \
                 webhook denies role names without it"
            ));
        }
    }
    let is_unknown = flags.unknown.iter().any(|one| one.id == "base_role_arn");
    if deciding.flags.base.is_none() && !is_unknown {
        sentences.push(
            "baseRoleArn is omitted, since no flag sets it: agents discover it at runtime, but the \
             webhook cannot, and denies role names without it. Add it"
                .into(),
        );
    }
    let usual = rolegate_core::annotation::AnnotationKeys::default();
    if deciding.keys != usual {
        sentences.push(
            "--iam-role-key, --iam-external-id and --namespace-key have no field: keep these flags, and set them \
             for the webhook, the controller and `rolegate policy` too"
                .into(),
        );
    }
    let is_usual = deciding.session_seconds == 3600 && deciding.scope == Default::default();
    if !is_usual {
        sentences
            .push("--session-scope and --session-duration have no field: keep these flags".into());
    }
    match deciding.cluster_config {
        ConfigMode::Off => sentences.push(
            "--cluster-config=off: a RolegateConfig has no effect until you remove this flag"
                .into(),
        ),
        ConfigMode::Required => sentences.push(
            "--cluster-config=required: every role is denied until a RolegateConfig exists, so \
             this one allows the roles that the other flags allow"
                .into(),
        ),
        ConfigMode::Auto => {}
    }
    sentences.push(
        "reservedRoles does not contain the agents' own roles, which they discover at runtime: add the nodes' roles for \
         the webhook"
            .into(),
    );
    Ok(sentences)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::flags::rules::RuleFlags;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        rules: RuleFlags,
    }

    /// Decisions depend on the configuration only, so equal configurations decide equally.
    #[test]
    fn the_config_says_what_the_flags_say() {
        for flags in [
            &[][..],
            &["--base-role-arn=arn:aws-cn:iam::123456789012:role/k8s/"],
            &[
                "--namespace-restrictions",
                "--namespace-restrictions-default=allow",
            ],
            &[
                "--namespace-restriction-format=regexp",
                "--layer=namespace=audit",
            ],
            &["--layer=grants=enforce,rego=audit", "--default-role=basic"],
            &["--reserved-role=node,arn:aws:iam::123456789012:role/path/rolegate"],
            &["--policy-namespaces=opa,rules", "--policy-label="],
            &[
                "--policy-label=team/x=y",
                "--replicate=v1/services,networking.k8s.io/v1/ingresses",
            ],
        ] {
            let parsed = Flags::parse_from(std::iter::once("test").chain(flags.iter().copied()));
            let flags_say = parsed.rules.config().unwrap();
            let config = RolegateConfig::from(&flags_say);
            let text = document::yaml(&serde_json::to_value(&config).unwrap()).unwrap();
            let read: RolegateConfig = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(
                RuleConfig::try_from(&read).unwrap(),
                flags_say,
                "{flags:?} {text}"
            );
        }
    }
}
