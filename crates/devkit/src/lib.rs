//! Stand-ins for what rolegate talks to: AWS STS ([`Sts`]), the EC2 instance
//! metadata service ([`Imds`]) and the Kubernetes API ([`KubeApi`]).
//!
//! Each is a small HTTP server inside the process, bound to an address of the
//! caller's choice (port 0 for one of the system's), and ends when its handle is
//! dropped. They follow the real services' rules and answers where a client can
//! tell the difference, have knobs to fail and to be slow, and remember what they
//! were asked. `rolegate demo` runs on them, and so do other crates' tests. They
//! are no servers for real use: nothing is kept, and there is no TLS.

mod http;
mod ids;
mod imds;
mod kube_api;
mod objects;
mod recent;
mod sts;

pub use imds::{
    Imds, ImdsOptions, ImdsRequest, NODE_ACCESS_KEY_ID, NODE_SECRET_ACCESS_KEY, NODE_SECRET_MARKER,
    NODE_SESSION_TOKEN,
};
pub use kube_api::{ApiRequest, KubeApi, KubeApiOptions};
pub use objects::{Namespace, Node, Pod};
pub use sts::{AccessKey, Sts, StsCall, StsFailure, StsOptions};
