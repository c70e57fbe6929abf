//! Tasks that exactly one replica does for the cluster. Replicas elect a leader with a Lease, and
//! only the leader runs tasks: it issues certificates, maintains the webhook configuration, writes
//! the status of rules, and removes startup taints. Further tasks implement [`leader_task::LeaderTask`].

pub mod app;
pub mod certificates;
pub mod leader_task;
pub mod lease;
mod owner;
pub mod rules;
pub mod startup_taint;
