//! Tests of the redirect from inside pods, and their effect on the agent's readiness.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rolegate_redirect::rules::InterfacePattern;
use rolegate_runtime::logging::list;
use rolegate_runtime::readiness::{Condition, Health};
use tokio::sync::watch;
use tracing::{error, info, warn};

use rolegate_redirect::check::{CheckResult, CheckState, SelfCheck};
use rolegate_redirect::{Status, ingress_interfaces};

/// Interval between tests from two pods.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Interval between tests while there is no pod yet.
const FIRST_CHECK_INTERVAL: Duration = Duration::from_secs(5);

type Labels = [(&'static str, &'static str); 1];
type States = Family<Labels, Gauge<i64, AtomicI64>>;

/// Tests the redirect from one pod after another.
#[derive(Debug)]
pub(super) struct RedirectCheck {
    pub(super) dir: PathBuf,
    pub(super) interface: InterfacePattern,
    pub(super) ready: Condition,
    states: States,
}

/// The result of a test from one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    state: CheckState,
    /// The result as a sentence.
    sentence: String,
    /// For a blocked pod, the interfaces on which its packets arrive at this host.
    interfaces: Vec<String>,
}

impl RedirectCheck {
    /// Creates a check from the network namespaces in `dir`, with its metric.
    pub(super) fn new(
        dir: PathBuf,
        interface: InterfacePattern,
        ready: Condition,
        registry: &mut Registry,
    ) -> Self {
        let states = States::default();
        registry.register(
            "redirect_pods",
            "Pods from which the redirect was tested, by what responds at the metadata address: the agent (ok), nothing (blocked) or another server (open)",
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

    /// Runs until it is dropped, once the redirect is installed.
    pub(super) async fn run(self, mut status: watch::Receiver<Status>) {
        if status.wait_for(|status| status.in_place).await.is_err() {
            return;
        }
        let mut namespaces = SelfCheck::new(&self.dir);
        // A pod's result stays until its next test, or until it is gone.
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
                // The pod has just exited, or a capability is missing.
                Err(error) => Some(Health::Noted(format!("cannot test the redirect: {error}"))),
            };
            pods.retain(|pod, _| pod.exists());
            self.ready
                .set(health.unwrap_or_else(|| decisions(&pods, &self.interface)));
            self.count(&pods);
            tokio::time::sleep(if pods.is_empty() {
                FIRST_CHECK_INTERVAL
            } else {
                CHECK_INTERVAL
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

/// Returns the effect of all pods' results on the agent.
///
/// A pod can make its own namespace look open or blocked, which must not stop the node's agent or a
/// rollout, so that is only a note. It cannot choose the interface on which its packets arrive. So
/// an interface that the pattern does not match is a configuration error, unless another pod
/// reaches the agent.
fn decisions(pods: &BTreeMap<PathBuf, Found>, pattern: &InterfacePattern) -> Health {
    let of = |state| pods.iter().filter(move |(_, found)| found.state == state);
    if let Some((pod, found)) = of(CheckState::Open).next() {
        return Health::Noted(format!("from {}: {}", pod.display(), found.sentence));
    }
    let reached = of(CheckState::Ok).count();
    let Some((pod, found)) = of(CheckState::Blocked).next() else {
        return match reached {
            0 => Health::Noted("no pod exists yet to test the redirect from".into()),
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
            "pods are blocked: their packets arrive on {}, which --host-interface={pattern} does not match",
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
        decisions(&pods(all), &"cali+".parse().unwrap())
    }

    #[test]
    fn only_a_wrong_interface_is_not_ready() {
        use CheckState::{Blocked, Ok, Open};
        let Health::Failing(why) = health(&[(Blocked, "eni3")]) else {
            panic!("a wrong interface");
        };
        assert!(
            why.contains("arrive on eni3, which --host-interface=cali+ does not match"),
            "{why}"
        );
        assert_eq!(health(&[(Ok, "")]), Health::Ok);
        for noted in [
            &[][..],
            // A pod on another network, in addition to pods that reach the agent.
            &[(Ok, ""), (Blocked, "eni3")],
            // A state that a pod can cause itself.
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
