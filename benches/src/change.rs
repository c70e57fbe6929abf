//! The time until a rule change applies at an agent with many pods.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rolegate_core::grant::{Grant, Subject};
use serde_json::json;

use crate::client::{self, Client, RESPONSE_TIMEOUT};
use crate::cluster;
use crate::harness::{Harness, NAMESPACE, Settings, credentials, pods};
use crate::load;
use crate::report::{Row, median, milliseconds};
use crate::stand_ins::{BASE_ROLE_ARN, Order, Roles, role};

const PODS: u32 = 50_000;
/// Half of the pods share these roles, each with a grant. The others have their own role and
/// service account and no grant, so that no decision applies to several of them.
const SHARED: u32 = 500;
const GRANTS: u32 = 1_000;
const ROUNDS: usize = 9;
/// The time for which responses are checked after the first by the new rules.
const HOLD: Duration = Duration::from_millis(300);
const ALLOWED: u16 = 200;
const DENIED: u16 = 403;

pub(crate) fn run(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let config = json!({
        "apiVersion": "rolegate.dev/v1alpha1",
        "kind": "RolegateConfig",
        "metadata": {"name": "cluster", "generation": 1},
        "spec": {
            "baseRoleArn": BASE_ROLE_ARN,
            "layers": {"namespace": "off", "grants": "enforce"},
        },
    });
    let mut harness = settings.harness(
        &[
            cluster::put(cluster::CONFIGS, [config]),
            cluster::put_grants((0..GRANTS).map(grant)),
            pods(NAMESPACE, 0, PODS / 2, Roles::Among(SHARED)),
            pods(NAMESPACE, PODS / 2, PODS / 2, Roles::OneEach),
        ],
        &[],
    )?;
    harness.settle(usize::try_from(SHARED)?)?;
    let mut clients = client::open(harness.agent.pods, 0..1, 1, credentials)?;
    let client = clients.first_mut().context("no connection")?;
    let given = cluster::put_grants([grant(0)]);
    let taken = Order::Delete {
        resource: cluster::GRANTS.to_owned(),
        name: grant(0).name.to_string(),
    };
    let mut rounds = Vec::with_capacity(ROUNDS);
    until(client, ALLOWED, DENIED)?;
    for _ in 0..ROUNDS {
        let denied = change(&mut harness, client, &taken, (ALLOWED, DENIED))?;
        let allowed = change(&mut harness, client, &given, (DENIED, ALLOWED))?;
        rounds.push((milliseconds(denied), milliseconds(allowed)));
    }
    let slowest = rounds.iter().map(|(denied, _)| *denied).fold(0.0, f64::max);
    let denied = median(rounds.iter().map(|(denied, _)| *denied));
    let allowed = median(rounds.iter().map(|(_, allowed)| *allowed));
    Ok(vec![Row {
        what: "a grant is revoked, 50,000 pods known: time until the agent refuses",
        target: "≤ 200 ms, and no answer by the old rules after it",
        measured: format!(
            "{denied:.1} ms (slowest of {ROUNDS}: {slowest:.1}; given again: {allowed:.1})"
        ),
        met: slowest <= 200.0,
        values: [
            ("denied_ms", denied),
            ("slowest_ms", slowest),
            ("allowed_again_ms", allowed),
        ]
        .into(),
    }])
}

/// Returns the grant of a shared role.
fn grant(number: u32) -> Grant {
    Grant {
        name: format!("grant-{number}").into(),
        roles: vec![role(number)],
        subjects: vec![Subject {
            namespaces: vec![NAMESPACE.to_owned()],
            ..Subject::default()
        }],
        ..Grant::default()
    }
}

/// Changes the rules while the pod sends requests. Returns the time from the order to the first
/// response by the new rules, after which there must be none by the old ones.
fn change(
    harness: &mut Harness,
    client: &mut Client,
    order: &Order,
    (before, after): (u16, u16),
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    harness.stand_ins.begin(order)?;
    until(client, after, before)?;
    let took = begun.elapsed();
    harness.stand_ins.done()?;
    let held = Instant::now();
    while held.elapsed() < HOLD {
        let status = ask(client)?;
        ensure!(
            status == after,
            "answered {status} after the change to {after} had counted"
        );
    }
    Ok(took)
}

/// Sends requests until the status is `wanted`. Until then it must be `other`.
fn until(client: &mut Client, wanted: u16, other: u16) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        match ask(client)? {
            status if status == wanted => return Ok(()),
            status if status == other && begun.elapsed() < RESPONSE_TIMEOUT => {}
            status => bail!("answered {status} instead of {wanted}"),
        }
    }
}

fn ask(client: &mut Client) -> anyhow::Result<u16> {
    load::burst(std::slice::from_mut(client), || Ok(()))?;
    Ok(client.answer()?.status)
}
