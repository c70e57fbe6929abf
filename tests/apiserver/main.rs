//! Tests against a real Kubernetes API server.
#![cfg(test)]
#![allow(
    clippy::too_many_lines,
    reason = "a test is one scenario, from its start to its end"
)]

mod broker_certificate;
mod broker_served;
mod certificates;
mod controller;
mod crds;
mod deploy;
mod deploy_broker;
mod doctor;
mod injection;
mod lease;
mod merge_patch;
mod parts;
mod service_accounts;
mod startup_taint;
mod token;
mod vap;
mod view;
mod watch;
mod webhook;

#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();
