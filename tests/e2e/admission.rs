//! The webhook from end to end: the shipped `rolegate admission` and `rolegate controller`, a real
//! API server with the shipped registration, and controllers that create pods. RBAC gives the users
//! all rights, so every rejection comes from the webhook. The webhook has only the rights of its
//! manifest.

mod availability;
mod cert_manager;
mod changes;
mod flags;
mod guards;
pub(crate) mod harness;
mod kubectl;
mod missing;
mod network;
mod policy;
mod registration;
mod shopping;
mod status;
