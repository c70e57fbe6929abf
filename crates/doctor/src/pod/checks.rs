//! One file for each check.

pub(super) mod agent;
pub(super) mod decision;
pub(super) mod events;
pub(super) mod pod;
pub(super) mod role;
pub(super) mod sdk;
