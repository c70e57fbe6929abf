//! kube2iam's health page on the pods' port, so that its DaemonSet's probe keeps working.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;

use super::answer::Answer;
use crate::metrics::Outcome;
use http::StatusCode;

/// What the page shows. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct NodeHealth(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host_ip: Option<IpAddr>,
    /// The instance's ID, or why it is not known.
    instance: ArcSwapOption<Result<String, String>>,
}

impl NodeHealth {
    /// Not known yet.
    pub fn new(host_ip: Option<IpAddr>) -> Self {
        Self(Arc::new(Inner {
            host_ip,
            instance: ArcSwapOption::empty(),
        }))
    }

    /// Sets what the node's metadata service says of the instance's ID.
    pub fn set_instance(&self, instance: Result<String, String>) {
        self.0.instance.store(Some(Arc::new(instance)));
    }

    pub(super) fn page(&self) -> Answer {
        let instance = self.0.instance.load();
        let reason = match instance.as_deref() {
            Some(Ok(id)) => {
                let host = self.0.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
                let page = serde_json::json!({ "hostIP": host, "instanceId": id });
                return Answer::ok(Bytes::from(page.to_string()));
            }
            Some(Err(reason)) => reason.as_str(),
            None => "the metadata service has not been asked yet",
        };
        // The page keeps its shape, so that a probe of the redirect knows who answered.
        let host = self.0.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
        let page = serde_json::json!({ "hostIP": host, "error": reason });
        Answer::refuse(Outcome::Upstream, Bytes::from(page.to_string()))
            .with_status(StatusCode::INTERNAL_SERVER_ERROR)
    }
}
