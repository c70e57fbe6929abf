//! The checks of a cluster, in the order of the report: a cause precedes its effects.

use super::checks::*;
use super::facts::ClusterFacts;
use crate::check::Check;

/// One line for each check.
pub(super) const CHECKS: &[Check<ClusterFacts>] = &[
    Check {
        name: "kubernetes-version",
        run: kubernetes_version::check,
    },
    Check {
        name: "custom-resources",
        run: custom_resources::check,
    },
    Check {
        name: "rights",
        run: rights::check,
    },
    Check {
        name: "agents",
        run: agents::check,
    },
    Check {
        name: "brokers",
        run: brokers::check,
    },
    Check {
        name: "admission",
        run: admission::check,
    },
    Check {
        name: "controller",
        run: controller::check,
    },
    Check {
        name: "conditions",
        run: conditions::check,
    },
    Check {
        name: "versions",
        run: versions::check,
    },
    Check {
        name: "leader",
        run: leader::check,
    },
    Check {
        name: "layers",
        run: layers::check,
    },
    Check {
        name: "rules",
        run: rules::check,
    },
    Check {
        name: "webhook",
        run: webhook::check,
    },
    Check {
        name: "webhook-certificate",
        run: webhook_certificate::check,
    },
    Check {
        name: "webhook-endpoints",
        run: webhook_endpoints::check,
    },
];
