//! Errors of the inventory, with the flags that help, and the error for flags without effect.

use rolegate_inventory::cluster::ClusterError;
use rolegate_inventory::files::FileError;
use rolegate_inventory::in_force::InForceError;
use rolegate_inventory::load::LoadError;

use crate::flags::invalid;

/// Returns the error of a file.
pub(crate) fn of_file(error: FileError) -> anyhow::Error {
    match error {
        FileError::StdinTwice => invalid(error.to_string()),
        FileError::Module(_) => with_advice(error, ": use --rules"),
        error => error.into(),
    }
}

/// Returns the error of a cluster.
pub(crate) fn of_cluster(error: ClusterError) -> anyhow::Error {
    let advice = match error {
        ClusterError::TimedOut { .. } => " (--request-timeout)",
        ClusterError::Forbidden(_) => {
            ": request the verbs get and list on them (ClusterRole rolegate-view of \
             deploy/rolegate-view.yaml grants them for the rules), or use manifests instead, with \
             --rules and --offline"
        }
        ClusterError::NotFound { .. } => ": set its namespace with -n",
        error => return error.into(),
    };
    with_advice(error, advice)
}

/// Returns the error of rules.
pub(super) fn of_load(error: LoadError) -> anyhow::Error {
    match error {
        LoadError::InForce(error) => of_in_force(error),
        error => error.into(),
    }
}

/// Returns the error of an unknown configuration.
pub(super) fn of_in_force(error: InForceError) -> anyhow::Error {
    let advice = match &error {
        InForceError::NoConfig => {
            ": add the RolegateConfig to --rules, or set the flags of the agents (--layer, \
             --namespace-restrictions, --base-role-arn and the like)"
        }
        InForceError::UnknownAgents(_) => {
            ". Set the agents' flags here (--layer, --namespace-restrictions, --base-role-arn and \
             the like; --layer=namespace=off if they have none), or create a RolegateConfig \
             (`rolegate policy adopt` writes one from flags)"
        }
        InForceError::UnknownFlag { flag, .. } if flag.id == "reserved_role" => {
            ". Write it into the pod template, or create a RolegateConfig"
        }
        InForceError::UnknownFlag { flag, .. } => {
            let advice = format!(". Give {} here, or create a RolegateConfig", flag.flag);
            return with_advice(&error, &advice);
        }
    };
    with_advice(&error, advice)
}

/// Rejects flags without any effect: `idle` are those of each configuration in use.
///
/// # Errors
/// Returns the flags as a usage error.
pub(super) fn refuse_idle(idle: &[&[(String, &'static str)]]) -> anyhow::Result<()> {
    let Some((first, others)) = idle.split_first() else {
        return Ok(());
    };
    let mut everywhere = first.iter().filter(|(flag, _)| {
        let mut others = others.iter();
        others.all(|other| other.iter().any(|(name, _)| name == flag))
    });
    match everywhere.next() {
        None => Ok(()),
        Some((flag, why)) => Err(invalid(format!(
            "{flag} has no effect here ({why}): omit it"
        ))),
    }
}

fn with_advice(error: impl std::fmt::Display, advice: &str) -> anyhow::Error {
    anyhow::anyhow!("{error}{advice}")
}
