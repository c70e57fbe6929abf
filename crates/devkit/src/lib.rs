//! Stand-ins for rolegate's dependencies: AWS STS ([`Sts`]), the EC2 instance metadata service
//! ([`Imds`]) and the Kubernetes API ([`KubeApi`]).
//!
//! Each is a small HTTP server in the process, bound to an address of the caller's choice (port 0
//! for any port), which stops when its handle is dropped. They follow the real services' rules and
//! responses where clients can notice the difference. They can be made to fail and to be slow, and
//! record their requests. `rolegate demo` and tests of other crates use them. They are not meant
//! for production: they store nothing and have no TLS.

mod http;
mod https;
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
pub use sts::{
    AccessKey, IdentityToken, InvalidOidcProvider, InvalidTrustPolicy, OidcProvider, Sts, StsCall,
    StsFailure, StsOptions,
};
