//! The gate from end to end: `rolegate admission` and `rolegate controller` as they are shipped, a
//! real API server that asks them by the shipped registration, and controllers that make pods.
//! Everybody may do everything here by RBAC, so whatever is refused is refused by the gate.

mod availability;
mod changes;
mod guards;
mod policy;
mod shopping;
mod stage;
