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
use rolegate_runtime::readiness::Condition;
use tokio::sync::mpsc;

use crate::client::Connection;
use crate::error::{Failure, Kind};
use crate::freshness::Freshness;
use crate::watch::{Source, WatchObserver};
use crate::watch_status::{DataError, WatchStatus};
use rolegate_api::{CONFIG_NAME, RolegateConfig};

/// The value of the metric label.
const RESOURCE: &str = "rolegateconfigs";
/// Interval at which the API server is checked for the custom resource definition.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// Timeout of a request for the resources that the API server serves.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(10);

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
/// | no definition | [`ClusterConfig::Unused`], checked again every minute | [`ClusterConfig::Missing`] |
/// | forbidden, no definition | `Unused`, checked again every minute | `Missing` |
/// | forbidden | nothing: there may be a configuration that overrides flags | `Missing` |
/// | definition deleted | `Missing` | `Missing` |
/// | permission revoked | nothing: the last configuration remains | nothing |
/// | no object | `Missing`, or `NotUsed` for ten minutes if the definition is new | `Missing` |
/// | an object | [`ClusterConfig::Valid`] or [`ClusterConfig::Invalid`] | the same |
/// | unavailable | nothing: the last configuration remains | nothing |
///
/// Nothing is sent before the first response, so a receiver that starts with
/// [`ClusterConfig::NotSynced`] keeps it. Returns only when `messages` is closed.
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
        drop(messages.send(wrap(ClusterConfig::Unused)).await);
        return messages.closed().await;
    }
    let condition = observer.condition.clone();
    let health = WatchStatus::new(RESOURCE, "RolegateConfig", crate::INSTALL_ADVICE, observer);
    let mut watch = ConfigWatch {
        connection,
        required: used == ConfigMode::Required,
        data_error: health.data_error(),
        health,
        condition,
        // One for the lifetime of the watch; otherwise content that may no longer be read would
        // never age.
        freshness: connection.freshness().another(RESOURCE),
        is_absence_reported: false,
        wrap,
        messages,
    };
    while let Some(failure) = watch.observe().await
        && let Some(wait) = watch.failed(&failure).await
    {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = watch.messages.closed() => return,
        }
    }
}

/// The state of the watch.
struct ConfigWatch<'c, W, M> {
    connection: &'c Connection,
    required: bool,
    data_error: DataError,
    health: WatchStatus,
    condition: Condition,
    freshness: Freshness,
    /// `true` once the log states that flags apply.
    is_absence_reported: bool,
    wrap: W,
    messages: mpsc::Sender<M>,
}

impl<W, M> ConfigWatch<'_, W, M>
where
    W: Fn(ClusterConfig) -> M + Send + Sync,
    M: Send + 'static,
{
    /// Watches the object until an error that requires another decision. Returns `None` if the
    /// receiver is closed.
    async fn observe(&mut self) -> Option<Failure> {
        let kind = ApiResource::erase::<RolegateConfig>(&());
        let api = |client| Api::all_with(client, &kind);
        let installation = Installation::new(self.is_absence_reported && !self.health.is_loaded());
        let report = |change| {
            let found = installation.decide(found(change));
            say(&self.data_error, &found, &installation);
            (self.wrap)(found)
        };
        let mut source =
            Source::within(self.freshness.clone(), self.connection, api, config, report);
        source.config = source
            .config
            .fields(&format!("metadata.name={CONFIG_NAME}"));
        source.ends_on = |kind| matches!(kind, Kind::NotFound | Kind::Forbidden);
        let mut run = pin!(source.run(&mut self.health, &self.messages));
        tokio::select! {
            failure = &mut run => failure,
            () = tokio::time::sleep(INSTALL_GRACE_PERIOD), if installation.is_open() => {
                if installation.end() {
                    say(&self.data_error, &ClusterConfig::Missing, &installation);
                    let missing = (self.wrap)(ClusterConfig::Missing);
                    self.messages.send(missing).await.ok()?;
                }
                run.await
            }
        }
    }

    /// Sends what follows from an error. Returns the delay before the next attempt, or `None` if
    /// the receiver is closed.
    async fn failed(&mut self, failure: &Failure) -> Option<Duration> {
        let is_optional = !self.required && !self.health.is_loaded();
        let is_forbidden = failure.kind == Kind::Forbidden;
        // The API server checks permissions first, so it also denies what is not installed.
        let is_undefined = is_forbidden && is_optional && is_undefined(self.connection).await;
        if failure.kind == Kind::NotFound || is_undefined {
            // The absence of the definition is itself up-to-date information. If reading is no
            // longer permitted, the definition may have been installed since.
            self.freshness.touch();
        }
        if is_forbidden && !is_undefined && (self.health.is_loaded() || is_optional) {
            // The last configuration remains in effect until it is stale. A permission that is
            // missing or revoked must not bypass the configuration.
            return Some(self.health.failed(failure));
        }
        if is_optional {
            let sentence = self.health.count(failure);
            if !std::mem::replace(&mut self.is_absence_reported, true) {
                tracing::info!(reason = sentence, "no RolegateConfig is used, flags apply");
            }
            self.condition.ok();
            self.send(ClusterConfig::Unused).await?;
            return Some(POLL_INTERVAL);
        }
        let wait = self.health.failed(failure);
        let sentence = self.health.sentence(failure);
        self.data_error.set(Some(format!(
            "the RolegateConfig is missing, all requests are denied: {sentence}"
        )));
        self.health.settle();
        self.send(ClusterConfig::Missing).await?;
        Some(wait)
    }

    /// Sends a state. Returns `None` if the receiver is closed.
    async fn send(&mut self, config: ClusterConfig) -> Option<()> {
        self.messages.send((self.wrap)(config)).await.ok()
    }
}

/// Returns `true` if the API server states that it does not serve the custom resource. Every
/// service account may read what is served, without a permission of its own.
async fn is_undefined(connection: &Connection) -> bool {
    let kind = ApiResource::erase::<RolegateConfig>(&());
    let client = connection.client();
    let served = client.list_api_group_resources(&kind.api_version);
    match tokio::time::timeout(DISCOVERY_TIMEOUT, served).await {
        Ok(Ok(served)) => !served.resources.iter().any(|it| it.name == kind.plural),
        Ok(Err(kube::Error::Api(status))) => status.code == 404,
        Ok(Err(_)) | Err(_) => false,
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
            ClusterConfig::Missing if self.is_open() => ClusterConfig::Unused,
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
        Some(Ok(config)) => ClusterConfig::Valid(config),
        Some(Err(why)) => ClusterConfig::Invalid(why),
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
        ClusterConfig::Invalid(why) => Some(format!("the RolegateConfig is invalid: {why}")),
        ClusterConfig::Unused if installation.is_open() => Some(format!(
            "the custom resource definition of RolegateConfig is new and there is no object \
             named {CONFIG_NAME}: flags apply for at most {} more minutes, then all requests \
             are denied; create it",
            INSTALL_GRACE_PERIOD.as_secs() / 60
        )),
        ClusterConfig::Unused | ClusterConfig::NotSynced | ClusterConfig::Valid(_) => None,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_apply_until_the_first_object_or_a_timeout() {
        let is = || ClusterConfig::Valid(Arc::default());
        let first_object = Installation::new(true);
        assert_eq!(
            first_object.decide(ClusterConfig::Missing),
            ClusterConfig::Unused
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
        let invalid = || ClusterConfig::Invalid("x".into());
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
