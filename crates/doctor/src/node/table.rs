//! The checks of a node, in the order of the report.

use super::checks::*;
use super::facts::NodeFacts;
use crate::check::Check;

/// One line for each check.
pub(super) const CHECKS: &[Check<NodeFacts>] = &[
    Check {
        name: "agent",
        run: agent::check,
    },
    Check {
        name: "redirect-rules",
        run: redirect_rules::check,
    },
    Check {
        name: "routing-rules",
        run: routing_rules::check,
    },
    Check {
        name: "interface",
        run: interface::check,
    },
    Check {
        name: "pods",
        run: pods::check,
    },
    Check {
        name: "foreign-rules",
        run: foreign_rules::check,
    },
    Check {
        name: "metadata-address",
        run: metadata_address::check,
    },
    Check {
        name: "metadata-service",
        run: metadata_service::check,
    },
    Check {
        name: "metadata-options",
        run: metadata_options::check,
    },
    Check {
        name: "identity",
        run: identity::check,
    },
    Check {
        name: "cni-results",
        run: cni_results::check,
    },
];
