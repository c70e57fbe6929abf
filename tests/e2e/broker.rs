//! Brokers from end to end: `rolegate broker` with the rights of the shipped manifest, agents that
//! have only a token bound to their pod, a real API server that reviews the tokens, and network
//! namespaces as nodes that reach the brokers by different addresses.

mod failover;
pub(crate) mod harness;
mod moving;
mod outages;
mod rights;
mod stolen;
mod strangers;
mod stream;
