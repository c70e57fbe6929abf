//! kube2iam's health page on the pods' port, for the probe of its DaemonSet.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

use super::reply::Reply;
use crate::metrics::Outcome;
use rolegate_redirect::check::AGENT_HEADER;

/// The content of the health page. Cloning is cheap; clones share state.
#[derive(Debug, Clone)]
pub struct NodeHealth(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host_ip: Option<IpAddr>,
    /// The instance ID, or the reason why it is unknown.
    instance: ArcSwapOption<Result<String, String>>,
}

impl NodeHealth {
    /// Creates the page without an instance ID.
    pub fn new(host_ip: Option<IpAddr>) -> Self {
        Self(Arc::new(Inner {
            host_ip,
            instance: ArcSwapOption::empty(),
        }))
    }

    /// Sets the instance ID that the node's metadata service returned.
    pub fn set_instance(&self, instance: Result<String, String>) {
        self.0.instance.store(Some(Arc::new(instance)));
    }

    /// Renders kube2iam's page. It always reports a healthy agent: a liveness probe must not
    /// restart an agent that serves credentials because the node's metadata service is unavailable.
    pub(super) fn page(&self) -> Reply {
        let instance = self.0.instance.load();
        let (id, reason) = match instance.as_deref() {
            Some(Ok(id)) => (id.as_str(), None),
            Some(Err(reason)) => ("", Some(reason.as_str())),
            None => ("", Some("the metadata service has not been queried yet")),
        };
        let host = self.0.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
        let mut page = serde_json::json!({ "hostIP": host, "instanceId": id });
        if let (Some(reason), Some(page)) = (reason, page.as_object_mut()) {
            page.insert("reason".to_owned(), reason.into());
        }
        let outcome = match reason {
            None => Outcome::Ok,
            Some(_) => Outcome::Upstream,
        };
        Reply::refuse(outcome, page.to_string())
            .with_status(StatusCode::OK)
            .with_header(
                HeaderName::from_static(AGENT_HEADER),
                HeaderValue::from_static("1"),
            )
    }
}
