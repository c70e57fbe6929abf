//! The node agent: the metadata door, the redirect that leads pods to it, and the picture of who
//! has which address and what was decided for them.
//!
//! [`app`] puts the parts together. A request goes `door → picture → session → bytes`; changes
//! come `source → director → picture`. Nothing here decides: that is `rolegate-core`'s.

pub mod app;
pub mod attachment;
pub mod broker;
mod debug;
pub mod director;
pub mod door;
pub mod guard;
pub mod handover;
pub mod judge;
mod kube2iam;
pub mod limits;
pub mod metrics;
mod netlink;
pub mod picture;
pub mod redirect;
mod roster;
pub mod runtime_folder;
pub mod token;
