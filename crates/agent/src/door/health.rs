//! kube2iam's health page on the pods' port, so that its DaemonSet's probe keeps working.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::StatusCode;
use http::header::HeaderValue;

use super::answer::Answer;
use crate::metrics::Outcome;
use crate::redirect::check::AGENT_HEADER;

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

    /// kube2iam's page. It says that the agent is alive, which is so while it answers: a probe on it
    /// must not restart an agent that serves credentials, since the node's metadata service is away.
    pub(super) fn page(&self) -> Answer {
        let instance = self.0.instance.load();
        let (id, reason) = match instance.as_deref() {
            Some(Ok(id)) => (id.as_str(), None),
            Some(Err(reason)) => ("", Some(reason.as_str())),
            None => ("", Some("the metadata service has not been asked yet")),
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
        Answer::refuse(outcome, page.to_string())
            .with_status(StatusCode::OK)
            .with_header(AGENT_HEADER, HeaderValue::from_static("1"))
    }
}
