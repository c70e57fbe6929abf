//! Brokers from end to end: `rolegate broker` with the rights of the shipped manifest, agents that
//! have nothing but a token bound to their pod, a real API server that says whose tokens are, and
//! network namespaces as nodes that reach the brokers by addresses of their own.

mod failover;
mod moving;
mod outages;
mod place;
mod rights;
mod stolen;
mod strangers;
mod stream;
