//! What one replica does for the cluster. Replicas elect a leader by a Lease, and only the leader
//! works: it makes the webhook's certificate, tells the API server whom to trust and what to ask about,
//! and writes how rules fare. What else one replica has to do is another [`duty::Duty`].

pub mod app;
pub mod certificates;
pub mod duty;
pub mod lease;
pub mod rules;
