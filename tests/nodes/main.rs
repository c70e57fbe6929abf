//! The shipped rolegate on nodes that run pods: containerd, kubelet, kube-proxy, a scheduler,
//! `deploy/rolegate-agent.yaml` with only the interface changed, and clients in containers. Only
//! AWS is a stand-in. Needs root. `make test-nodes` runs these tests, `make test-slow` the ignored
//! ones, which wait for minutes.

#![cfg(test)]

mod addresses;
mod agents;
mod ask;
mod boot;
mod chart;
mod credentials;
mod dead_node;
mod docs_walk;
mod drain;
mod kinds;
mod machine;
mod many_pods;
mod peers;
mod reboot;
mod replace;
mod services;
mod stolen;
mod takeover;
mod update;
mod user;
