//! One file for each check.

pub(super) mod admission;
pub(super) mod agents;
pub(super) mod brokers;
pub(super) mod conditions;
pub(super) mod controller;
pub(super) mod custom_resources;
pub(super) mod kubernetes_version;
pub(super) mod layers;
pub(super) mod leader;
pub(super) mod rights;
pub(super) mod rules;
pub(super) mod versions;
pub(super) mod webhook;
pub(super) mod webhook_certificate;
pub(super) mod webhook_endpoints;

mod replicas;
mod scheduling;
