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

    /// kube2iam's page: JSON, or 500 and the reason.
    pub(super) fn page(&self) -> Answer {
        let instance = self.0.instance.load();
        let answer = match instance.as_deref() {
            Some(Ok(id)) => {
                let host = self.0.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
                let page = serde_json::json!({ "hostIP": host, "instanceId": id });
                Answer::ok(page.to_string().into())
            }
            Some(Err(reason)) => failed(reason),
            None => failed("the metadata service has not been asked yet"),
        };
        answer.with_header(AGENT_HEADER, HeaderValue::from_static("1"))
    }
}

fn failed(reason: &str) -> Answer {
    Answer::refuse(Outcome::Upstream, format!("{reason}\n"))
        .with_status(StatusCode::INTERNAL_SERVER_ERROR)
}
