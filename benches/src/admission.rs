//! The admission webhook from the API server's side: HTTPS, reviews of 4 KB, persistent
//! connections.

use std::time::Duration;

use rolegate_core::grant::{Grant, Subject};
use serde_json::{Value, json};

use crate::cluster::{self, SERVICE_ACCOUNT, Shape};
use crate::harness::Settings;
use crate::load::{self, Closed, Run};
use crate::proc;
use crate::report::{Row, mebibytes, median, milliseconds};
use crate::review;
use crate::stand_ins::Order;
use crate::webhook::{Webhook, check};

const TEAMS: usize = 1_000;
const BUSY: usize = 16;
const ROUNDS: usize = 7;
const GRANTS_ONLY: &str = "namespace=off,grants=enforce";
const REGO_ONLY: &str = "namespace=off,rego=enforce";
const GRANTS_AND_REGO: &str = "namespace=off,grants=enforce,rego=enforce";

/// The role allow list that was published for OPA, and a role on it.
const POLICY: &str =
    include_str!("../../crates/rego/tests/fixtures/deployment-create-whitelist-role-ns.rego");
/// A policy that reads the namespaces.
const READS_NAMESPACES: &str = r#"package kubernetes.admission

deny[msg] {
    data.kubernetes.namespaces[input.request.namespace].metadata.labels.frozen == "true"
    msg := "this namespace is frozen"
}
"#;
const POLICY_NAME: &str = "deployment-create-whitelist-role-ns";
const ON_THE_LIST: (&str, &str) = ("payments", "payments-reader");
/// The number of namespaces that the policy can read when memory is measured.
const REPLICATED: usize = 5_000;

/// Layer `grants`.
pub(crate) fn grants(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let namespaces = (0..TEAMS).map(cluster::namespace_object);
    let grants = (0..TEAMS).map(|team| cluster::grant(team, Shape::mixed(team)));
    let orders = [
        cluster::put(cluster::NAMESPACES, namespaces),
        cluster::put_grants(grants),
    ];
    let webhook = Webhook::start(settings, &orders, GRANTS_ONLY)?;
    let of = |namespace, role| {
        review::deployment(
            &cluster::namespace(namespace),
            SERVICE_ACCOUNT,
            &cluster::role(role),
        )
    };
    webhook.refuses(of(1, 2))?;
    // Grants of all shapes, over the whole range.
    let reviews: Vec<_> = (0..BUSY)
        .map(|number| of(number * 61, number * 61))
        .collect();
    let alone = measure(&webhook, reviews.iter().take(1))?;
    let busy = measure(&webhook, &reviews)?;
    Ok(vec![
        alone.latency_row(
            "webhook, 1,000 grants, review of 4 KB over HTTPS, 1 in flight",
            "p50 ≤ 0.3 ms, p99 ≤ 1 ms",
            (0.3, 1.0),
        ),
        busy.rate_row(
            "as above, 16 in flight: reviews per second, load generator included",
            "≥ 10000",
            10_000.0,
            None,
        ),
    ])
}

/// Layer `rego`.
pub(crate) fn rego(settings: &Settings) -> anyhow::Result<Vec<Row>> {
    let webhook = Webhook::start(settings, &published(2), REGO_ONLY)?;
    webhook.refuses(review::deployment("search", SERVICE_ACCOUNT, ON_THE_LIST.1))?;
    let alone = measure(&webhook, [&allowed()])?;
    let busy = measure(&webhook, &vec![allowed(); BUSY])?;
    Ok(vec![
        alone.latency_row(
            "webhook, OPA's role allow list in Rego, review of 4 KB, 1 in flight",
            "p50 ≤ 0.45 ms, p99 ≤ 1.5 ms",
            (0.45, 1.5),
        ),
        busy.rate_row(
            "as above, 16 in flight: reviews per second",
            "≥ 5000, p99 ≤ 10 ms",
            5_000.0,
            Some(10.0),
        ),
        memory(settings)?,
    ])
}

fn memory(settings: &Settings) -> anyhow::Result<Row> {
    let (namespace, _) = ON_THE_LIST;
    let theirs = Grant {
        name: namespace.into(),
        roles: vec![format!("{namespace}-*")],
        subjects: vec![Subject {
            namespaces: vec![namespace.to_owned()],
            ..Subject::default()
        }],
        ..Grant::default()
    };
    let grants = (1..TEAMS).map(|team| cluster::grant(team, Shape::mixed(team)));
    let mut orders = published(REPLICATED);
    // The published policy imports namespaces without using them, and unused data is not
    // replicated.
    orders.push(policies([
        (POLICY_NAME, POLICY),
        ("frozen-namespaces", READS_NAMESPACES),
    ]));
    orders.push(cluster::put_grants(grants.chain([theirs])));
    let webhook = Webhook::start(settings, &orders, GRANTS_AND_REGO)?;
    webhook.refuses(review::deployment(
        "team-2",
        SERVICE_ACCOUNT,
        "team-2-writer",
    ))?;
    let idle = proc::memory(webhook.pid())?;
    measure(&webhook, &vec![allowed(); BUSY])?;
    let loaded = proc::memory(webhook.pid())?;
    let [idle, now, peak] = [idle.now, loaded.now, loaded.peak].map(mebibytes);
    Ok(Row {
        what: "memory of the webhook, 1,000 grants, Rego with 5,000 namespaces, under load",
        target: "peak ≤ 40 MiB",
        measured: format!("{now:.1} MiB, peak {peak:.1} (before any load {idle:.1})"),
        met: peak <= 40.0,
        values: [("idle_mib", idle), ("now_mib", now), ("peak_mib", peak)].into(),
    })
}

/// Returns a review that the published policy allows.
fn allowed() -> Value {
    let (namespace, role) = ON_THE_LIST;
    review::deployment(namespace, SERVICE_ACCOUNT, role)
}

/// Returns the published policy as kube-mgmt loads it, and this many namespaces: those that it
/// lists, and teams'.
fn published(namespaces: usize) -> Vec<Order> {
    let role_name = ["payments", "search"].map(|name| cluster::named_namespace(name, json!({})));
    let teams = (role_name.len()..namespaces).map(cluster::namespace_object);
    vec![
        policies([(POLICY_NAME, POLICY)]),
        cluster::put(cluster::NAMESPACES, role_name.into_iter().chain(teams)),
    ]
}

/// Returns policies as kube-mgmt loads them.
fn policies<const COUNT: usize>(all: [(&str, &str); COUNT]) -> Order {
    let maps = all.map(|(name, text)| {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "namespace": "opa",
                "name": name,
                "labels": {"openpolicyagent.org/policy": "rego"},
            },
            "data": {"main": text},
        })
    });
    cluster::put(cluster::CONFIG_MAPS, maps)
}

/// The results of one kind of load, medians of rounds.
struct Measured {
    per_second: f64,
    /// Microseconds per review.
    cpu: f64,
    /// Milliseconds.
    p50: f64,
    p99: f64,
}

/// Sends each review repeatedly on its own connection, all concurrently. All must be allowed.
fn measure<'a>(
    webhook: &Webhook,
    reviews: impl IntoIterator<Item = &'a Value>,
) -> anyhow::Result<Measured> {
    let mut clients = webhook.clients(reviews.into_iter().cloned())?;
    load::burst(&mut clients, || Ok(()))?;
    check(&clients, true)?;
    let load = Closed {
        in_flight: clients.len(),
        warm_up: Duration::from_millis(300),
        duration: Duration::from_secs(1),
        status: 200,
        pid: webhook.pid(),
    };
    let runs = (0..ROUNDS)
        .map(|_| load::closed(&mut clients, load))
        .collect::<anyhow::Result<Vec<_>>>()?;
    check(&clients, true)?;
    let at = |part| {
        median(
            runs.iter()
                .map(|run| milliseconds(run.latencies().at(part))),
        )
    };
    Ok(Measured {
        per_second: median(runs.iter().map(Run::per_second)),
        cpu: median(runs.iter().map(Run::cpu_per_request)),
        p50: at(0.5),
        p99: at(0.99),
    })
}

impl Measured {
    fn latency_row(&self, what: &'static str, target: &'static str, most: (f64, f64)) -> Row {
        let Self { p50, p99, cpu, .. } = self;
        Row {
            what,
            target,
            measured: format!("p50 {p50:.2} ms, p99 {p99:.2} (CPU {cpu:.0} µs)"),
            met: *p50 <= most.0 && *p99 <= most.1,
            values: self.values(),
        }
    }

    fn rate_row(
        &self,
        what: &'static str,
        target: &'static str,
        least: f64,
        most_p99: Option<f64>,
    ) -> Row {
        let Self {
            per_second,
            cpu,
            p99,
            ..
        } = self;
        Row {
            what,
            target,
            measured: format!("{per_second:.0}, p99 {p99:.1} ms (CPU {cpu:.0} µs)"),
            met: *per_second >= least && most_p99.is_none_or(|most| *p99 <= most),
            values: self.values(),
        }
    }

    fn values(&self) -> std::collections::BTreeMap<&'static str, f64> {
        [
            ("per_second", self.per_second),
            ("cpu_us", self.cpu),
            ("p50_ms", self.p50),
            ("p99_ms", self.p99),
        ]
        .into()
    }
}
