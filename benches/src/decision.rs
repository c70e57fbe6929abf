//! The decision function alone, in this process.

use std::hint::black_box;
use std::time::Instant;

use anyhow::ensure;
use jiff::Timestamp;
use rolegate_core::arn::BaseArn;
use rolegate_core::config::{Modes, RuleConfig};
use rolegate_core::decision::{Decision, RuleSet};
use rolegate_core::labels::Labels;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::namespace::Namespace;
use rolegate_core::rule_set_builder::{AwsEnvironment, RuleSetBuilder, RuleUpdate};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::{Change, Phase, RoleRequest, Workload};

use crate::cluster::{self, SERVICE_ACCOUNT, Shape};
use crate::harness::Settings;
use crate::report::{Row, median, microseconds};
use crate::stand_ins::BASE_ROLE_ARN;

const TEAMS: usize = 1_000;
const BATCHES: usize = 51;
const NOW: Timestamp = Timestamp::UNIX_EPOCH;

pub(crate) fn run(_: &Settings) -> anyhow::Result<Vec<Row>> {
    let own: Vec<_> = (0..TEAMS).map(|team| pod(team, team)).collect();
    let others: Vec<_> = (0..TEAMS)
        .map(|team| pod(team, (team + 1) % TEAMS))
        .collect();
    let mixed = rules(Shape::mixed)?;
    let allowed = each(&mixed, &own, true)?;
    let anywhere = each(&rules(|_| Shape::Anywhere)?, &own, true)?;
    let star_first = each(&rules(|_| Shape::StarFirst)?, &own, true)?;
    let denied = each(&mixed, &others, false)?;
    Ok(vec![Row {
        what: "decision alone, 1,000 grants",
        target: "≤ 2 µs",
        measured: format!(
            "{allowed:.2} µs (patterns for any namespace {anywhere:.2}, beginning with a star \
             {star_first:.1}; a denial {denied:.1})"
        ),
        met: allowed <= 2.0,
        values: [
            ("mixed_us", allowed),
            ("anywhere_us", anywhere),
            ("star_first_us", star_first),
            ("denied_us", denied),
        ]
        .into(),
    }])
}

/// Returns the rules of a cluster whose teams' grants have these shapes.
fn rules(shape: impl Fn(usize) -> Shape) -> anyhow::Result<RuleSet> {
    let config = RuleConfig {
        base: Some(BaseArn::parse(BASE_ROLE_ARN)?),
        modes: Modes::OFF.with(LayerId::Grants, Mode::Enforce),
        ..RuleConfig::default()
    };
    let mut book = RuleSetBuilder::new(config, SessionScope::Workload, 3600);
    book.set_aws_environment(AwsEnvironment::default());
    let namespaces = (0..TEAMS).map(|team| Namespace {
        name: cluster::namespace(team).into(),
        labels: [cluster::label(team)].into_iter().collect(),
        ..Namespace::default()
    });
    book.update(RuleUpdate::Namespaces(Change::Snapshot(
        namespaces.collect(),
    )));
    let grants = (0..TEAMS).map(|team| cluster::grant(team, shape(team)));
    book.update(RuleUpdate::Grants(Change::Snapshot(grants.collect())));
    Ok(book.rule_set())
}

/// Returns a pod of a team that requests a role of a team.
fn pod(team: usize, of: usize) -> Workload {
    Workload {
        namespace: cluster::namespace(team).into(),
        name: format!("checkout-{team}").into(),
        uid: format!("uid-{team}").into(),
        node: Some("node".into()),
        service_account: SERVICE_ACCOUNT.into(),
        addresses: Vec::new(),
        phase: Phase::Running,
        host_network: false,
        mirror: false,
        role_request: RoleRequest {
            role: Some(cluster::role(of).into()),
            ..RoleRequest::default()
        },
        labels: Labels::default(),
        annotations: Labels::default(),
    }
}

/// Returns the microseconds per decision, the median of batches, all of which must be `allowed`.
fn each(rules: &RuleSet, pods: &[Workload], allowed: bool) -> anyhow::Result<f64> {
    for pod in pods {
        let decision = rules.decide(pod, NOW);
        ensure!(
            matches!(decision, Decision::Allow { .. }) == allowed,
            "wrong decision for pod {}: {decision:?}",
            pod.name
        );
    }
    let batches = (0..BATCHES).map(|_| {
        let begun = Instant::now();
        for pod in pods {
            black_box(rules.decide(black_box(pod), NOW));
        }
        microseconds(begun.elapsed()) / pods.len() as f64
    });
    Ok(median(batches))
}
