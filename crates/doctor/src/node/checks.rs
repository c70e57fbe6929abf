//! One file for each check.

pub(super) mod agent;
pub(super) mod cni_results;
pub(super) mod foreign_rules;
pub(super) mod identity;
pub(super) mod interface;
pub(super) mod metadata_address;
pub(super) mod metadata_options;
pub(super) mod metadata_service;
pub(super) mod pods;
pub(super) mod redirect_rules;
pub(super) mod routing_rules;
