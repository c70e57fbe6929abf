//! A pod's owner finds the reason for missing credentials in `kubectl describe pod`.

use std::collections::BTreeMap;

use anyhow::ensure;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use rolegate_testkit::{Cluster, eventually};

use crate::ask::{self, CREDENTIALS};
use crate::fixture::{AgentFixture, DEADLINE, no_secrets};

#[tokio::test(flavor = "multi_thread")]
async fn rule_03_a_denial_becomes_one_event_on_the_pod() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let fixture = AgentFixture::new("events", cluster).await?;
    let namespace = fixture.namespace("a");
    let annotations = [("iam.amazonaws.com/allowed-roles", r#"["reader"]"#)];
    cluster.create_namespace(&namespace, &annotations).await?;
    let pods = ["10.1.0.5", "10.1.0.6", "10.1.0.7"].map(|address| fixture.pod(address).unwrap());
    for (pod, (name, role)) in
        pods.iter()
            .zip([("admin", "admin"), ("node", "node"), ("fine", "reader")])
    {
        cluster
            .run_pod(&fixture.object("a", name, pod).role(role))
            .await?;
    }
    let agent = fixture.ready_agent(&["--namespace-restrictions"]).await?;

    for _ in 0..30 {
        assert_eq!(ask::get(&pods[0], CREDENTIALS)?.status, 403);
    }
    let answer = ask::get(&pods[0], CREDENTIALS)?.body;
    assert_eq!(ask::get(&pods[2], CREDENTIALS)?.status, 200);
    // Events are written one after another: once this one exists, earlier ones do too.
    assert_eq!(ask::get(&pods[1], CREDENTIALS)?.status, 403);
    let events = Api::<Event>::namespaced(cluster.admin()?, &namespace);
    let found = eventually(DEADLINE, async || {
        let all = events.list(&ListParams::default()).await?.items;
        let of_last = |event: &Event| named(event) == Some("node");
        ensure!(all.iter().any(of_last), "{} events", all.len());
        Ok(all)
    })
    .await?;
    let mut counts = BTreeMap::new();
    for event in &found {
        *counts.entry(named(event).unwrap_or_default()).or_insert(0) += 1;
        assert_eq!(event.reason.as_deref(), Some("RoleForbidden"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(
            event.reporting_controller.as_deref(),
            Some("rolegate-agent")
        );
        assert_eq!(event.reporting_instance.as_deref(), Some("events"));
        let pod = event.regarding.as_ref().unwrap();
        assert_eq!(
            (pod.kind.as_deref(), pod.uid.is_some()),
            (Some("Pod"), true)
        );
        no_secrets(&format!("{event:?}"))?;
    }
    assert_eq!(counts, BTreeMap::from([("admin", 1), ("node", 1)]));
    let note = |pod: &str| {
        let event = found.iter().find(|event| named(event) == Some(pod));
        event
            .and_then(|event| event.note.clone())
            .unwrap_or_default()
    };
    // The Event contains the pod's response, names the role once, and says what to do.
    assert_eq!(note("admin"), answer.trim_end());
    assert_eq!(note("admin").matches("role/admin").count(), 1, "{answer}");
    assert!(note("admin").contains("allowed-roles"), "{answer}");
    assert!(note("admin").contains("to allow it"), "{answer}");

    let log = agent.log();
    no_secrets(&log)?;
    let denials: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("request denied"))
        .collect();
    for said in ["pod=admin", "layer=\"namespace\"", "role/admin\""] {
        assert!(
            denials.iter().any(|line| line.contains(said)),
            "{said}: {denials:?}"
        );
    }
    Ok(())
}

fn named(event: &Event) -> Option<&str> {
    event.regarding.as_ref()?.name.as_deref()
}
