//! The checks of a pod, in the order of the report.

use super::checks::*;
use super::facts::PodFacts;
use crate::check::Check;

/// One line for each check.
pub(super) const CHECKS: &[Check<PodFacts>] = &[
    Check {
        name: "pod",
        run: pod::check,
    },
    Check {
        name: "role",
        run: role::check,
    },
    Check {
        name: "decision",
        run: decision::check,
    },
    Check {
        name: "sdk",
        run: sdk::check,
    },
    Check {
        name: "agent",
        run: agent::check,
    },
    Check {
        name: "events",
        run: events::check,
    },
];
