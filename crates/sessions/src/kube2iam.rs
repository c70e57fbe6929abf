//! The duration of AssumeRole calls under kube2iam's metric name, for existing dashboards.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rolegate_core::session::{Failure, SessionKey};
use rolegate_runtime::histogram::AtomicHistogram;

/// Maximum number of role ARNs as labels: pods choose them.
const MAX_ROLES: usize = 1000;
/// The label of all further roles.
const OTHERS: &str = "others";

type Labels = [(&'static str, String); 2];
type Histograms = Family<Labels, AtomicHistogram, fn() -> AtomicHistogram>;

/// `kube2iam_iam_request_duration_seconds{code,role_arn}`.
#[derive(Debug, Clone)]
pub(crate) struct Kube2iamCalls {
    calls: Histograms,
    roles: Arc<Mutex<HashSet<String>>>,
}

impl Kube2iamCalls {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let calls =
            Histograms::new_with_constructor(|| AtomicHistogram::new(AtomicHistogram::LATENCIES));
        registry.register(
            "kube2iam_iam_request_duration_seconds",
            "Duration of AssumeRole calls, under kube2iam's name",
            calls.clone(),
        );
        Self {
            calls,
            roles: Arc::default(),
        }
    }

    pub(crate) fn call(&self, key: &SessionKey, failure: Option<&Failure>, took: Duration) {
        let role = {
            let mut roles = self.roles.lock();
            let known = roles.len() < MAX_ROLES || roles.contains(key.role.as_str());
            let role = if known { key.role.as_str() } else { OTHERS };
            if !roles.contains(role) {
                roles.insert(role.to_owned());
            }
            role.to_owned()
        };
        // The code is AWS's, of which there are few; unusual ones are replaced by their kind.
        let code = match failure {
            None => "Success",
            Some(failure) if failure.code.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                &failure.code
            }
            Some(failure) => failure.kind.reason(),
        };
        self.calls
            .get_or_create(&[("code", code.to_owned()), ("role_arn", role)])
            .observe(took);
    }
}
