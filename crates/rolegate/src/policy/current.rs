//! The current rules that flags select, from a cluster or from files.

use std::path::PathBuf;

use anyhow::bail;
use rolegate_core::arn::BaseArn;
use rolegate_inventory::cluster::{Cluster, ClusterError};
use rolegate_inventory::in_force::{Agents, FlagSources};
use rolegate_inventory::load::{Assumed, Loaded};
use rolegate_inventory::objects::Objects;
use rolegate_kube::client::ClientError;
use rolegate_policy::check::foreign;
use serde_json::Value;

use super::agents::ProcessFlags;
use super::connect::connect;
use super::errors::{of_cluster, of_load};
use super::files;
use super::flags::{OwnFlags, ReadFlags, RulesFrom};

/// The current rules and their users, and the sources of the flags that apply to them.
pub(super) struct Current {
    /// The objects.
    pub(super) objects: Objects,
    /// The sources of flags.
    pub(super) sources: FlagSources,
    /// The cluster, if one was read.
    pub(super) cluster: Option<Cluster>,
}

impl Current {
    /// Returns the rules of the cluster overlaid with objects of files.
    ///
    /// # Errors
    /// Returns an error for a cluster or file that cannot be read.
    pub(super) async fn laid_over(read: &ReadFlags, from: &RulesFrom) -> anyhow::Result<Self> {
        let files = Some(&*from.rules).filter(|files| !files.is_empty());
        let change = files.map(files::objects).transpose()?;
        let cluster = if from.offline {
            None
        } else {
            match connect(&read.reading).await {
                Ok(cluster) => Some(cluster),
                Err(error) if change.is_some() && is_nowhere(&error) => None,
                Err(error) => return Err(of_cluster(error)),
            }
        };
        let Some(cluster) = cluster else {
            return Self::of_objects(read, change.unwrap_or_default());
        };
        let change = change.unwrap_or_default();
        let mut current = Self::of_cluster(read, cluster, &change, false).await?;
        current.objects = current.objects.overlaid(&change, false);
        Ok(current)
    }

    /// Reads the files if there are paths, and otherwise the rules of the cluster, including those
    /// that `change` needs.
    ///
    /// # Errors
    /// Returns an error for a cluster or file that cannot be read.
    pub(super) async fn read(
        read: &ReadFlags,
        paths: &[PathBuf],
        change: &Objects,
    ) -> anyhow::Result<Self> {
        if !paths.is_empty() {
            return Self::of_objects(read, files::objects(paths)?);
        }
        let cluster = connect(&read.reading).await.map_err(of_cluster)?;
        Self::of_cluster(read, cluster, change, true).await
    }

    async fn of_cluster(
        read: &ReadFlags,
        cluster: Cluster,
        change: &Objects,
        with_off_policies: bool,
    ) -> anyhow::Result<Self> {
        let agents = read.agents.read(&cluster).await;
        let sources = flag_sources(&read.own()?, Some(agents))?;
        let flags = &sources.deciding.flags;
        let rules = cluster.rules(flags, change, with_off_policies).await;
        let (values, has_kind) = rules.map_err(of_cluster)?;
        let objects = Objects::of_cluster(values, cluster.namespace(), has_kind);
        Ok(Self {
            objects,
            sources,
            cluster: Some(cluster),
        })
    }

    /// Enables layers based on the existing rules if nothing sets their mode.
    pub(super) fn guessing(mut self) -> Self {
        self.sources.guesses = true;
        self
    }

    /// Adds the users of roles in one `namespace` or all if a cluster was read. Files contain them
    /// already; those of other namespaces are removed. With `whole_pods`, pods keep most of their
    /// fields.
    ///
    /// # Errors
    /// Returns an error for objects that cannot be read.
    pub(super) async fn add_users(
        &mut self,
        whole_pods: bool,
        namespace: Option<&str>,
    ) -> anyhow::Result<()> {
        if let Some(namespace) = namespace {
            self.objects.keep_users(namespace);
        }
        if let Some(cluster) = &self.cluster {
            let users = cluster.users(whole_pods, namespace).await;
            self.objects.extend(users.map_err(of_cluster)?);
        }
        Ok(())
    }

    /// Returns the rules and pods with the configuration in force.
    ///
    /// # Errors
    /// Returns an error for a malformed object, or if the configuration in force is unknown.
    pub(super) fn load(&self) -> anyhow::Result<Loaded> {
        load(&self.objects, &self.sources, &Assumed::default())
    }

    /// Requires the base ARN as [`require_base`] does, for an answer about these objects.
    ///
    /// # Errors
    /// Returns an error that names the ways to set the base ARN.
    pub(super) fn require_base<A: PartialEq>(
        &self,
        loaded: &Loaded,
        without: &A,
        answer: impl Fn(&Loaded) -> anyhow::Result<A>,
    ) -> anyhow::Result<()> {
        let Self {
            objects, sources, ..
        } = self;
        require_base(loaded, sources, objects.values(), without, |base| {
            answer(&load(objects, sources, &Assumed::base(base))?)
        })
    }

    fn of_objects(read: &ReadFlags, objects: Objects) -> anyhow::Result<Self> {
        Ok(Self {
            objects,
            sources: flag_sources(&read.own()?, None)?,
            cluster: None,
        })
    }
}

/// Returns whether no cluster is configured.
fn is_nowhere(error: &ClusterError) -> bool {
    matches!(error, ClusterError::Client(ClientError::Nowhere { .. }))
}

/// Merges the flags of this command with those of the processes that decide in the cluster, if one
/// was read.
///
/// # Errors
/// Returns a usage error for flags that contradict each other.
pub(super) fn flag_sources(
    own: &OwnFlags,
    agents: Option<Result<Box<ProcessFlags>, String>>,
) -> anyhow::Result<FlagSources> {
    let flags = own.flags.clone();
    let (flags, agents) = match agents {
        Some(Ok(processes)) => {
            let ProcessFlags {
                flags: lower,
                origin,
            } = *processes;
            (
                flags.over(lower, own.given.fields()),
                Some(Agents::Known(origin)),
            )
        }
        Some(Err(why)) => (flags, Some(Agents::Unknown(why))),
        None => (flags, None),
    };
    Ok(FlagSources {
        deciding: flags.validated()?,
        given: own.given.fields().names().clone(),
        agents,
        guesses: false,
    })
}

/// Returns the rules and pods with the configuration in force, with parts of it assumed.
///
/// # Errors
/// Returns an error for a malformed object, or if the configuration in force is unknown.
pub(super) fn load(
    objects: &Objects,
    sources: &FlagSources,
    assumed: &Assumed,
) -> anyhow::Result<Loaded> {
    let mut loaded = objects.load_as(sources, assumed).map_err(of_load)?;
    let foreign = objects.placed().filter_map(|(value, place)| {
        let place = place.as_deref().unwrap_or("the cluster");
        foreign(value).map(|why| format!("{place}: {why}"))
    });
    loaded.notes.extend(foreign);
    Ok(loaded)
}

/// Rejects an answer that depends on the base ARN, which agents discover at runtime, see
/// [`Loaded::depends_on_base`].
///
/// # Errors
/// Returns an error that names the ways to set the base ARN.
pub(super) fn require_base<'v, A: PartialEq>(
    loaded: &Loaded,
    sources: &FlagSources,
    judged: impl IntoIterator<Item = &'v Value>,
    without: &A,
    answer: impl Fn(BaseArn) -> anyhow::Result<A>,
) -> anyhow::Result<()> {
    if loaded.depends_on_base(sources, judged, without, answer)? {
        bail!(
            "the answer depends on the base ARN that completes role names, which is unknown \
             here ({}): agents discover it at runtime. Set it with --base-role-arn, or as \
             baseRoleArn of a RolegateConfig",
            loaded.basis.source
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
