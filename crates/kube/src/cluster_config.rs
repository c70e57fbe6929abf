//! Watches the cluster's `RolegateConfig`.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use rolegate_core::config::RuleConfig;
use rolegate_core::rule_set_builder::{ClusterConfig, InvalidConfig};
use rolegate_core::workload::Change;
use tokio::sync::mpsc;

use crate::client::Connection;
use crate::error::Kind;
use crate::watch::{Source, WatchObserver};
use crate::watch_status::{DataError, WatchStatus};
use rolegate_api::{CONFIG_NAME, RolegateConfig};

/// The value of the metric label.
const RESOURCE: &str = "rolegateconfigs";
/// Interval at which the API server is checked for the custom resource definition.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

/// Time that flags continue to apply after the definition was installed, so that definition and
/// object can be applied one after the other without denying everything in between.
pub const INSTALL_GRACE_PERIOD: Duration = Duration::from_secs(600);

/// The use of the cluster's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigMode {
    /// Use it if its custom resource definition is installed; otherwise use flags.
    Auto,
    /// Use it, and deny everything without it.
    Required,
    /// Use flags.
    Off,
}

/// Watches the configuration and sends its state:
///
/// | response of the API server | [`ConfigMode::Auto`] | [`ConfigMode::Required`] |
/// | --- | --- | --- |
/// | no definition | [`ClusterConfig::NotUsed`], checked again every minute | [`ClusterConfig::Missing`] |
/// | forbidden | nothing: there may be a configuration that overrides flags | `Missing` |
/// | definition deleted | `Missing` | `Missing` |
/// | permission revoked | nothing: the last configuration remains | nothing |
/// | no object | `Missing`, or `NotUsed` for ten minutes if the definition is new | `Missing` |
/// | an object | [`ClusterConfig::Is`] or [`ClusterConfig::Broken`] | the same |
/// | unavailable | nothing: the last configuration remains | nothing |
///
/// Nothing is sent before the first response, so a receiver that starts with
/// [`ClusterConfig::Unseen`] keeps it. Returns only when `messages` is closed.
pub async fn watch_cluster_config<M: Send + 'static>(
    connection: &Connection,
    used: ConfigMode,
    observer: WatchObserver,
    wrap: impl Fn(ClusterConfig) -> M + Send + Sync,
    messages: mpsc::Sender<M>,
) {
    if used == ConfigMode::Off {
        observer.condition.ok();
        // Closed already, or it soon will be.
        drop(messages.send(wrap(ClusterConfig::NotUsed)).await);
        return messages.closed().await;
    }
    let condition = observer.condition.clone();
    let mut health = WatchStatus::new(RESOURCE, "RolegateConfig", crate::INSTALL_ADVICE, observer);
    let data_error = health.data_error();
    let kind = ApiResource::erase::<RolegateConfig>(&());
    // One for the lifetime of the watch; otherwise content that may no longer be read would never
    // age.
    let freshness = connection.freshness().another(RESOURCE);
    let mut told = false;
    loop {
        let api = |client| Api::all_with(client, &kind);
        let installation = Installation::new(told && !health.is_loaded());
        let tell = |change| {
            let found = found(change);
            let found = installation.decide(found);
            say(&data_error, &found, &installation);
            wrap(found)
        };
        let mut source = Source::within(freshness.clone(), connection, api, config, tell);
        source.config = source
            .config
            .fields(&format!("metadata.name={CONFIG_NAME}"));
        source.ends_on = |kind| matches!(kind, Kind::NotFound | Kind::Forbidden);
        let failure = {
            let mut run = pin!(source.run(&mut health, &messages));
            tokio::select! {
                failure = &mut run => failure,
                () = tokio::time::sleep(INSTALL_GRACE_PERIOD), if installation.is_open() => {
                    if installation.end() {
                        say(&data_error, &ClusterConfig::Missing, &installation);
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
            // The absence of the definition is itself up-to-date information. If reading is no
            // longer permitted, the definition may have been installed since.
            freshness.touch();
        }
        let wait = match (used, health.is_loaded()) {
            // The last configuration remains in effect until it is stale.
            (_, true) if failure.kind == Kind::Forbidden => health.failed(&failure),
            // A permission that is missing or revoked must not bypass the configuration.
            (ConfigMode::Auto, false) if failure.kind == Kind::Forbidden => health.failed(&failure),
            (ConfigMode::Auto, false) => {
                let sentence = health.count(&failure);
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(reason = sentence, "no RolegateConfig is used, flags apply");
                }
                condition.ok();
                if messages.send(wrap(ClusterConfig::NotUsed)).await.is_err() {
                    return;
                }
                POLL_INTERVAL
            }
            _ => {
                let wait = health.failed(&failure);
                let sentence = health.sentence(&failure);
                let why =
                    format!("the RolegateConfig is missing, all requests are denied: {sentence}");
                data_error.set(Some(why));
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

/// The grace period between installing the definition and the first object, in which flags continue
/// to apply.
struct Installation(AtomicBool);

impl Installation {
    /// Creates the state. `open`: flags applied until now, and no object was observed.
    fn new(open: bool) -> Self {
        Self(AtomicBool::new(open))
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends the grace period. Returns `true` if it was open.
    fn end(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }

    /// Returns the configuration that applies. The first object ends the grace period, whether
    /// valid or not.
    fn decide(&self, found: ClusterConfig) -> ClusterConfig {
        match found {
            ClusterConfig::Missing if self.is_open() => ClusterConfig::NotUsed,
            found => {
                self.end();
                found
            }
        }
    }
}

/// Parses the object if it is the one that applies.
fn config(object: DynamicObject) -> Option<Result<Arc<RuleConfig>, InvalidConfig>> {
    // The field selector ensures this; if it were ignored, another object must not apply.
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

/// Updates the readiness condition. The watch itself is healthy. The rule store decides whether a
/// missing or broken configuration blocks readiness: admission still has to respond, while an agent
/// has nothing to serve.
fn say(data_error: &DataError, found: &ClusterConfig, installation: &Installation) {
    data_error.set(match found {
        ClusterConfig::Missing => Some(format!(
            "there is no RolegateConfig named {CONFIG_NAME}: create it, or delete its custom \
             resource definition and restart to use flags"
        )),
        ClusterConfig::Broken(why) => Some(format!("the RolegateConfig is invalid: {why}")),
        ClusterConfig::NotUsed if installation.is_open() => Some(format!(
            "the custom resource definition of RolegateConfig is new and there is no object \
             named {CONFIG_NAME}: flags apply for at most {} more minutes, then all requests \
             are denied; create it",
            INSTALL_GRACE_PERIOD.as_secs() / 60
        )),
        ClusterConfig::NotUsed | ClusterConfig::Unseen | ClusterConfig::Is(_) => None,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_apply_until_the_first_object_or_a_timeout() {
        let is = || ClusterConfig::Is(Arc::default());
        let first_object = Installation::new(true);
        assert_eq!(
            first_object.decide(ClusterConfig::Missing),
            ClusterConfig::NotUsed
        );
        assert_eq!(first_object.decide(is()), is());
        assert_eq!(
            first_object.decide(ClusterConfig::Missing),
            ClusterConfig::Missing
        );
        assert!(
            !first_object.end(),
            "the end comes too late to refuse anything"
        );

        let broken = Installation::new(true);
        let invalid = || ClusterConfig::Broken("x".into());
        assert_eq!(broken.decide(invalid()), invalid());
        assert_eq!(
            broken.decide(ClusterConfig::Missing),
            ClusterConfig::Missing
        );

        let too_late = Installation::new(true);
        assert!(too_late.end());
        assert_eq!(
            too_late.decide(ClusterConfig::Missing),
            ClusterConfig::Missing
        );

        let never_by_flags = Installation::new(false);
        assert_eq!(
            never_by_flags.decide(ClusterConfig::Missing),
            ClusterConfig::Missing
        );
    }
}
