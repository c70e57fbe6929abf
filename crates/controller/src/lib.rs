//! Tasks that exactly one replica does for the cluster. Replicas elect a leader with a Lease, and
//! only the leader runs tasks: it issues certificates, maintains the webhook configuration, and
//! writes the status of rules. Further tasks implement [`leader_task::LeaderTask`].

pub mod app;
pub mod certificates;
pub mod leader_task;
pub mod lease;
pub mod rules;
