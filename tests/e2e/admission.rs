//! The gate from end to end: `rolegate admission` and `rolegate controller` as they are shipped, a
//! real API server that asks them by the shipped registration, and controllers that make pods. By
//! RBAC users may do everything here, so whatever they are refused is refused by the gate, and the
//! gate has the rights of its manifest and no others.

mod availability;
mod cert_manager;
mod changes;
mod flags;
mod guards;
mod kubectl;
mod missing;
mod network;
mod policy;
mod registration;
mod shopping;
pub(crate) mod stage;
mod status;
