//! The redirect tried from inside pods: what was found in each, and what it means for the agent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_core::redirect::InterfacePattern;
use rolegate_runtime::logging::list;
use rolegate_runtime::readiness::{Condition, Health};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::redirect::check::{CheckResult, CheckState, SelfCheck};
use crate::redirect::{Status, ingress_interfaces};

/// The interval between two pods from which the redirect is tried.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// The same while there is no pod yet.
const FIRST_CHECK_INTERVAL: Duration = Duration::from_secs(5);

type Labels = [(&'static str, &'static str); 1];
type States = Family<Labels, Gauge<i64, AtomicI64>>;

/// Tries the redirect from one pod after the other.
#[derive(Debug)]
pub(super) struct RedirectCheck {
    pub(super) dir: PathBuf,
    pub(super) interface: InterfacePattern,
    pub(super) ready: Condition,
    states: States,
}

/// What was found in one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    state: CheckState,
    /// The result in a sentence.
    sentence: String,
    /// For a pod that is blocked: the interfaces by which its packets come into this host.
    interfaces: Vec<String>,
}

impl RedirectCheck {
    /// A check from the network namespaces in `dir`, with its metric.
    pub(super) fn new(
        dir: PathBuf,
        interface: InterfacePattern,
        ready: Condition,
        registry: &mut Registry,
    ) -> Self {
        let states = States::default();
        registry.register(
            "redirect_pods",
            "Pods from which the redirect was tried, by what answers them at the metadata address: the agent (ok), nothing (blocked) or something else (open)",
            states.clone(),
        );
        let check = Self {
            dir,
            interface,
            ready,
            states,
        };
        check.count(&BTreeMap::new());
        check
    }

    /// Runs until it is dropped, once the redirect is in place.
    pub(super) async fn run(self, mut status: watch::Receiver<Status>) {
        if status.wait_for(|status| status.in_place).await.is_err() {
            return;
        }
        let mut namespaces = SelfCheck::new(&self.dir);
        // A pod stays as it was found until it is looked at again, or gone.
        let mut pods: BTreeMap<PathBuf, Found> = BTreeMap::new();
        loop {
            let health = match namespaces.next().await {
                Ok(Some((pod, result))) => {
                    let found = self.found(&pod, &result).await;
                    self.log(&pod, &found, pods.get(&pod));
                    pods.insert(pod, found);
                    None
                }
                Ok(None) => None,
                // A pod that has just ended, or a right that is missing.
                Err(error) => Some(Health::Noted(format!("cannot try the redirect: {error}"))),
            };
            pods.retain(|pod, _| pod.exists());
            self.ready
                .set(health.unwrap_or_else(|| judge(&pods, &self.interface)));
            self.count(&pods);
            tokio::time::sleep(match pods.is_empty() {
                true => FIRST_CHECK_INTERVAL,
                false => CHECK_INTERVAL,
            })
            .await;
        }
    }

    async fn found(&self, pod: &Path, result: &CheckResult) -> Found {
        let state = result.state();
        let interfaces = match state {
            CheckState::Blocked => ingress_interfaces(pod).await.unwrap_or_else(|error| {
                warn!(netns = %pod.display(), %error, "cannot find a pod's interface");
                Vec::new()
            }),
            CheckState::Ok | CheckState::Open => Vec::new(),
        };
        Found {
            state,
            sentence: result.to_string(),
            interfaces,
        }
    }

    fn log(&self, pod: &Path, found: &Found, before: Option<&Found>) {
        if before == Some(found) && found.state != CheckState::Open {
            return;
        }
        let netns = pod.display();
        let result = &found.sentence;
        match found.state {
            CheckState::Ok => info!(%netns, "a pod reaches the agent"),
            CheckState::Blocked => warn!(
                %netns,
                result,
                interfaces = list(&found.interfaces),
                host_interface = %self.interface,
                "a pod is blocked from the metadata address and does not reach the agent"
            ),
            CheckState::Open => {
                error!(%netns, result, "a pod reaches the real metadata service");
            }
        }
    }

    fn count(&self, pods: &BTreeMap<PathBuf, Found>) {
        for state in CheckState::ALL {
            let count = pods.values().filter(|found| found.state == state).count();
            let gauge = self.states.get_or_create(&[("state", state.as_str())]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

/// What the state of all pods means for the agent.
///
/// A pod can make its own namespace look open or blocked, and must not stop the node's agent or a
/// rollout with it: that is a note. It cannot choose the interface by which it comes in, so one that
/// the pattern does not match is a fault of the configuration, as long as no pod gets through.
fn judge(pods: &BTreeMap<PathBuf, Found>, pattern: &InterfacePattern) -> Health {
    let of = |state| pods.iter().filter(move |(_, found)| found.state == state);
    if let Some((pod, found)) = of(CheckState::Open).next() {
        return Health::Noted(format!("from {}: {}", pod.display(), found.sentence));
    }
    let reached = of(CheckState::Ok).count();
    let Some((pod, found)) = of(CheckState::Blocked).next() else {
        return match reached {
            0 => Health::Noted("no pod is there yet to try the redirect from".into()),
            _ => Health::Ok,
        };
    };
    let mut blocked = of(CheckState::Blocked);
    let elsewhere = blocked.find(|(_, found)| {
        let mut interfaces = found.interfaces.iter();
        !found.interfaces.is_empty() && !interfaces.any(|name| pattern.matches(name))
    });
    match elsewhere {
        Some((_, found)) if reached == 0 => Health::Failing(format!(
            "pods are blocked: their packets come in by {}; --host-interface={pattern} does not match it",
            found.interfaces.join(", ")
        )),
        _ => Health::Noted(format!(
            "blocked, from {}: {}",
            pod.display(),
            found.sentence
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(all: &[(CheckState, &str)]) -> BTreeMap<PathBuf, Found> {
        let found = all.iter().map(|(state, interfaces)| Found {
            state: *state,
            sentence: state.as_str().into(),
            interfaces: interfaces.split_whitespace().map(str::to_owned).collect(),
        });
        let numbered = found.enumerate();
        numbered
            .map(|(number, found)| (PathBuf::from(number.to_string()), found))
            .collect()
    }

    fn health(all: &[(CheckState, &str)]) -> Health {
        judge(&pods(all), &"cali+".parse().unwrap())
    }

    #[test]
    fn only_a_wrong_interface_is_not_ready() {
        use CheckState::{Blocked, Ok, Open};
        let Health::Failing(why) = health(&[(Blocked, "eni3")]) else {
            panic!("a wrong interface");
        };
        assert!(
            why.contains("come in by eni3; --host-interface=cali+ does not match"),
            "{why}"
        );
        assert_eq!(health(&[(Ok, "")]), Health::Ok);
        for noted in [
            &[][..],
            // A pod on another network beside pods that get through.
            &[(Ok, ""), (Blocked, "eni3")],
            // What a pod can do to itself.
            &[(Blocked, "cali3")],
            &[(Blocked, "cali3 eni3")],
            &[(Blocked, "")],
            &[(Open, ""), (Blocked, "eni3")],
            &[(Open, ""), (Ok, "")],
        ] {
            assert!(matches!(health(noted), Health::Noted(_)), "{noted:?}");
        }
    }
}
