//! Tests against a real Kubernetes API server.
#![cfg(test)]

mod deploy;
mod watch;
