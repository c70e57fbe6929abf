//! Pods that were admitted without a role a moment ago. If their service account gets a role soon
//! after, they run without it until they are restarted, which is reported.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Maximum number of remembered pods. The oldest is forgotten first.
const MAX_PODS: usize = 4096;
/// Time for which a pod is remembered.
const TTL: Duration = Duration::from_secs(120);
/// Maximum number of pods that one report names.
const MAX_NAMED: usize = 5;

/// A pod that was admitted without a role.
#[derive(Debug, Clone)]
struct Pod {
    namespace: Arc<str>,
    account: Arc<str>,
    /// `metadata.name`, or `metadata.generateName` followed by `*`.
    name: Arc<str>,
    admitted: Instant,
}

/// The remembered pods.
#[derive(Debug, Default)]
pub(crate) struct RecentPods(Mutex<VecDeque<Pod>>);

/// The pods of one service account that were forgotten when it got a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LateRole {
    /// The number of pods.
    pub(crate) count: usize,
    /// The names of some of them.
    pub(crate) names: Vec<Arc<str>>,
}

impl RecentPods {
    /// Remembers a pod.
    pub(crate) fn push(&self, namespace: &str, account: &str, name: &str) {
        let mut pods = self.0.lock();
        let now = Instant::now();
        while pods
            .front()
            .is_some_and(|pod| pods.len() >= MAX_PODS || now.duration_since(pod.admitted) >= TTL)
        {
            pods.pop_front();
        }
        pods.push_back(Pod {
            namespace: namespace.into(),
            account: account.into(),
            name: name.into(),
            admitted: now,
        });
    }

    /// Returns the service accounts of all remembered pods, each once.
    pub(crate) fn accounts(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let pods = self.0.lock();
        let mut accounts: Vec<_> = pods
            .iter()
            .map(|pod| (pod.namespace.clone(), pod.account.clone()))
            .collect();
        accounts.sort_unstable();
        accounts.dedup();
        accounts
    }

    /// Forgets the pods of a service account that just got a role, and returns them.
    pub(crate) fn take(&self, namespace: &str, account: &str) -> Option<LateRole> {
        let mut pods = self.0.lock();
        let now = Instant::now();
        let mut late = LateRole {
            count: 0,
            names: Vec::new(),
        };
        pods.retain(|pod| {
            let is_taken = *pod.namespace == *namespace && *pod.account == *account;
            if is_taken && now.duration_since(pod.admitted) < TTL {
                late.count += 1;
                if late.names.len() < MAX_NAMED {
                    late.names.push(pod.name.clone());
                }
            }
            !is_taken
        });
        (late.count > 0).then_some(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn recent_pods_of_an_account_are_taken_once() {
        let pods = RecentPods::default();
        pods.push("shop", "api", "old");
        tokio::time::advance(TTL).await;
        for number in 0..7 {
            pods.push("shop", "api", &format!("api-{number}"));
        }
        pods.push("shop", "web", "web-0");
        let late = pods.take("shop", "api").unwrap();
        assert_eq!((late.count, late.names.len()), (7, MAX_NAMED));
        assert_eq!(pods.take("shop", "api"), None);
        assert_eq!(pods.accounts(), [("shop".into(), "web".into())]);
        for number in 0..2 * MAX_PODS {
            pods.push("shop", "many", &number.to_string());
        }
        assert_eq!(pods.take("shop", "many").unwrap().count, MAX_PODS);
    }
}
