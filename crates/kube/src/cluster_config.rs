//! The cluster's configuration object: whether there is one, and what it says.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use rolegate_core::config::RuleConfig;
use rolegate_core::rulebook::{ClusterConfig, InvalidConfig};
use rolegate_core::workload::Change;
use tokio::sync::mpsc;

use crate::client::Connection;
use crate::failure::Kind;
use crate::watch::{Reporting, Source};
use crate::watchdog::{Trouble, Watchdog};
use rolegate_api::{CONFIG_NAME, INSTALL, RolegateConfig};

/// The label of what is counted.
const RESOURCE: &str = "rolegateconfigs";
/// How often it is looked whether the kind is there by now.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// How long flags go on counting after the kind was installed, so that kind and object can be applied one
/// after the other without a moment in which everything is refused.
pub const INSTALLATION: Duration = Duration::from_secs(600);

/// Whether the cluster's configuration counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigUse {
    /// It does where its kind is installed; else flags count.
    Auto,
    /// It does, and without it everything is refused.
    Required,
    /// Flags count.
    Off,
}

/// Watches the configuration and sends what becomes of it:
///
/// | what the API server says | [`ConfigUse::Auto`] | [`ConfigUse::Required`] |
/// | --- | --- | --- |
/// | no such kind | [`ClusterConfig::NotUsed`], looked at again each minute | [`ClusterConfig::Missing`] |
/// | it may not be read | nothing: there may be one that says otherwise than flags | `Missing` |
/// | no such kind any more, after it was seen | `Missing` | `Missing` |
/// | it may not be read any more, after it was seen | nothing: what it said holds | nothing |
/// | no object | `Missing`; where flags counted before the kind was there, `NotUsed` for ten minutes | `Missing` |
/// | an object | [`ClusterConfig::Is`] or [`ClusterConfig::Broken`] | the same |
/// | nothing, it is away | nothing: what it said holds | nothing |
///
/// Until the first answer nothing is sent: whoever starts with [`ClusterConfig::Unseen`] stays with
/// it. Returns only when `messages` is closed.
pub async fn watch_cluster_config<M: Send + 'static>(
    connection: &Connection,
    used: ConfigUse,
    reporting: Reporting,
    wrap: impl Fn(ClusterConfig) -> M + Send + Sync,
    messages: mpsc::Sender<M>,
) {
    if used == ConfigUse::Off {
        reporting.condition.ok();
        // Closed already, or it soon will be.
        drop(messages.send(wrap(ClusterConfig::NotUsed)).await);
        return messages.closed().await;
    }
    let condition = reporting.condition.clone();
    let mut health = Watchdog::new(RESOURCE, "the RolegateConfig", INSTALL, reporting);
    let trouble = health.trouble();
    let kind = ApiResource::erase::<RolegateConfig>(&());
    // One for the watch's whole life; otherwise content that may no longer be read would never age.
    let picture = connection.pictures().another(RESOURCE);
    let mut told = false;
    loop {
        let api = |client| Api::all_with(client, &kind);
        let installation = Installation::new(told && !health.is_loaded());
        let tell = |change| {
            let found = found(change);
            let found = installation.judge(found);
            say(&trouble, &found, &installation);
            wrap(found)
        };
        let mut source = Source::within(picture.clone(), connection, api, config, tell);
        source.config = source
            .config
            .fields(&format!("metadata.name={CONFIG_NAME}"));
        source.ends_on = |kind| matches!(kind, Kind::NotFound | Kind::Forbidden);
        let failure = {
            let mut run = pin!(source.run(&mut health, &messages));
            tokio::select! {
                failure = &mut run => failure,
                () = tokio::time::sleep(INSTALLATION), if installation.is_open() => {
                    if installation.end() {
                        say(&trouble, &ClusterConfig::Missing, &installation);
                        if messages.send(wrap(ClusterConfig::Missing)).await.is_err() {
                            return;
                        }
                    }
                    run.await
                }
            }
        };
        let Some(failure) = failure else {
            return;
        };
        drop(source);
        if failure.kind == Kind::NotFound {
            // The absence of the kind is itself up-to-date information. If reading is no longer
            // permitted, the kind may have been installed since.
            picture.touch();
        }
        let wait = match (used, health.is_loaded()) {
            // What it said holds, as long as the picture isn't too old.
            (_, true) if failure.kind == Kind::Forbidden => health.failed(&failure),
            // A right that is taken away, or not there yet, doesn't open what the object closes.
            (ConfigUse::Auto, false) if failure.kind == Kind::Forbidden => health.failed(&failure),
            (ConfigUse::Auto, false) => {
                let sentence = health.count(&failure);
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(reason = sentence, "no RolegateConfig is used, flags count");
                }
                condition.ok();
                if messages.send(wrap(ClusterConfig::NotUsed)).await.is_err() {
                    return;
                }
                LOOK_AGAIN
            }
            _ => {
                let wait = health.failed(&failure);
                let sentence = health.sentence(&failure);
                let why =
                    format!("the RolegateConfig is missing, everything is refused: {sentence}");
                trouble.set(Some(why));
                health.settle();
                if messages.send(wrap(ClusterConfig::Missing)).await.is_err() {
                    return;
                }
                wait
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = messages.closed() => return,
        }
    }
}

/// The time between the installation of the kind and the first object, during which flags go on counting.
struct Installation(AtomicBool);

impl Installation {
    /// `open`: flags counted until now, and no object was ever seen.
    fn new(open: bool) -> Self {
        Self(AtomicBool::new(open))
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends it; whether it was open.
    fn end(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }

    /// What counts. The first object ends it, whether it can be used or not.
    fn judge(&self, found: ClusterConfig) -> ClusterConfig {
        match found {
            ClusterConfig::Missing if self.is_open() => ClusterConfig::NotUsed,
            found => {
                self.end();
                found
            }
        }
    }
}

/// What the object says, if it is the one that counts.
fn config(object: DynamicObject) -> Option<Result<Arc<RuleConfig>, InvalidConfig>> {
    // The selector sees to it already; were it ignored, another object must not count.
    if object.metadata.name.as_deref() != Some(CONFIG_NAME) {
        return None;
    }
    let generation = object.metadata.generation;
    let read = object
        .try_parse::<RolegateConfig>()
        .map_err(|error| crate::chain(&error));
    let config = read.and_then(|read| RuleConfig::try_from(&read).map_err(|e| e.to_string()));
    Some(config.map(Arc::new).map_err(|reason| InvalidConfig {
        reason: reason.into(),
        generation,
    }))
}

fn found(change: Change<Result<Arc<RuleConfig>, InvalidConfig>>) -> ClusterConfig {
    let object = match change {
        Change::Snapshot(all) => all.into_iter().next(),
        Change::Apply(object) => Some(object),
        Change::Delete(_) => None,
    };
    match object {
        None => ClusterConfig::Missing,
        Some(Ok(config)) => ClusterConfig::Is(config),
        Some(Err(why)) => ClusterConfig::Broken(why),
    }
}

/// What the condition says to it. The watch is well; whether a configuration that is missing or
/// broken is a reason not to be ready is for whoever keeps the rules: a gate has to answer, with
/// what is missing, and a door has nothing to give.
fn say(trouble: &Trouble, found: &ClusterConfig, installation: &Installation) {
    trouble.set(match found {
        ClusterConfig::Missing => Some(format!(
            "there is no RolegateConfig named {CONFIG_NAME}: create it, or delete its kind \
             and restart to let flags count"
        )),
        ClusterConfig::Broken(why) => Some(format!("the RolegateConfig cannot be used: {why}")),
        ClusterConfig::NotUsed if installation.is_open() => Some(format!(
            "the kind RolegateConfig is new and there is no object named {CONFIG_NAME}: flags count for \
             {} minutes more at most, then everything is refused; create it",
            INSTALLATION.as_secs() / 60
        )),
        ClusterConfig::NotUsed | ClusterConfig::Unseen | ClusterConfig::Is(_) => None,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_on_counting_until_the_first_object_or_the_end_of_the_installation() {
        let is = || ClusterConfig::Is(Arc::default());
        let first_object = Installation::new(true);
        assert_eq!(
            first_object.judge(ClusterConfig::Missing),
            ClusterConfig::NotUsed
        );
        assert_eq!(first_object.judge(is()), is());
        assert_eq!(
            first_object.judge(ClusterConfig::Missing),
            ClusterConfig::Missing
        );
        assert!(
            !first_object.end(),
            "the end comes too late to refuse anything"
        );

        let broken = Installation::new(true);
        let invalid = || ClusterConfig::Broken("x".into());
        assert_eq!(broken.judge(invalid()), invalid());
        assert_eq!(broken.judge(ClusterConfig::Missing), ClusterConfig::Missing);

        let too_late = Installation::new(true);
        assert!(too_late.end());
        assert_eq!(
            too_late.judge(ClusterConfig::Missing),
            ClusterConfig::Missing
        );

        let never_by_flags = Installation::new(false);
        assert_eq!(
            never_by_flags.judge(ClusterConfig::Missing),
            ClusterConfig::Missing
        );
    }
}
