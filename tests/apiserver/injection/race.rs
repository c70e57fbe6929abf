//! Pods that are created right after their service accounts, while the webhook is restarted.

use std::time::Duration;

use anyhow::{Context, ensure};
use rolegate_testkit::request::{PatchKind, Requests};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::fixture::{Fixture, ROLE, account, pod, role_of};

/// The number of pods.
const PODS: u32 = 600;
/// The interval between two pods: 100 pods a second.
const INTERVAL: Duration = Duration::from_millis(10);
/// Maximum number of attempts to create one pod, as its controller would make.
const MAX_ATTEMPTS: usize = 20;
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(500);

/// Time for which a pod waits for the role of its new service account.
const WAIT: Duration = Duration::from_secs(4);

/// The result for one pod.
struct Raced {
    name: String,
    /// The number of refused attempts to create the pod.
    refused: usize,
    /// True if the service account had its role while a pod still waits for it. On a machine that is
    /// too busy it may not.
    is_in_time: bool,
}

/// Creates a service account and, up to 500 ms later, its pod. Every fourth service account gets its
/// role only after the pod was submitted.
async fn race(driver: Requests, number: u32) -> anyhow::Result<Raced> {
    let name = format!("racer-{number}");
    let lead = Duration::from_millis(u64::from(number * 37 % 501));
    let is_late = number.is_multiple_of(4);
    let accounts = "/api/v1/namespaces/shop/serviceaccounts";
    let role = (!is_late).then_some(ROLE);
    let begin = Instant::now();
    driver
        .post(accounts, &account(&name, role))
        .await?
        .object()?;
    tokio::time::sleep(lead).await;
    let annotate = async {
        if is_late {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let role = json!({"metadata": {"annotations": {"eks.amazonaws.com/role-arn": ROLE}}});
            let path = format!("{accounts}/{name}");
            driver
                .patch(&path, PatchKind::Merge, &role)
                .await?
                .object()?;
        }
        anyhow::Ok(!is_late || begin.elapsed() < WAIT / 2)
    };
    let create = async {
        for refused in 0..MAX_ATTEMPTS {
            let answer = driver
                .post("/api/v1/namespaces/shop/pods", &pod(&name, &name))
                .await?;
            if answer.status.is_success() {
                return Ok(refused);
            }
            ensure!(answer.status.is_server_error(), "{}", answer.message());
            tokio::time::sleep(ATTEMPT_INTERVAL).await;
        }
        anyhow::bail!("pod {name} was refused {MAX_ATTEMPTS} times")
    };
    let (is_in_time, refused) = tokio::join!(annotate, create);
    Ok(Raced {
        refused: refused?,
        is_in_time: is_in_time?,
        name,
    })
}

#[tokio::test]
async fn no_pod_goes_without_injection() {
    let wait = format!("--inject-wait={}s", WAIT.as_secs());
    let mut fixture = Fixture::start(&[&wait]).await.unwrap();
    fixture.account("api", Some(ROLE)).await.unwrap();
    fixture.register(|_| {});
    fixture.until_called().await.unwrap();

    let begin = Instant::now();
    let mut old = fixture.webhook.take().unwrap();
    let driver = fixture.driver.clone();
    let run = async {
        let mut races = JoinSet::new();
        for number in 0..PODS {
            sleep_until(begin + INTERVAL * number).await;
            races.spawn(race(driver.clone(), number));
        }
        let mut all = Vec::new();
        while let Some(raced) = races.join_next().await {
            all.push(raced.unwrap().unwrap());
        }
        all
    };
    // A rolling update: the next replica is ready before the old one is stopped.
    let update = async {
        sleep_until(begin + INTERVAL * (PODS / 4)).await;
        let next = fixture.replica(&[&wait]).await.unwrap();
        fixture.service.lead_to(&next.url());
        old.admission.stop().await.unwrap();
        next
    };
    let (raced, _next) = tokio::join!(run, update);
    let path = "/api/v1/namespaces/shop/pods";
    let pods = fixture.driver.get(path).await.unwrap().object().unwrap();
    let pods = pods["items"].as_array().context("no list").unwrap();
    assert_eq!(pods.len(), PODS as usize);
    let without: Vec<_> = pods
        .iter()
        .filter(|pod| role_of(&pod["spec"]["containers"][0]) != Some(ROLE))
        .filter_map(|pod| pod["metadata"]["name"].as_str())
        .filter(|name| raced.iter().any(|it| it.name == *name && it.is_in_time))
        .collect();
    assert!(
        without.is_empty(),
        "{} of {PODS}: {without:?}",
        without.len()
    );
    let in_time = raced.iter().filter(|it| it.is_in_time).count();
    // All service accounts that had their role from the beginning, at least.
    assert!(in_time >= PODS as usize * 3 / 4);
    println!(
        "{PODS} pods in {:?}, {} attempts refused, {in_time} roles in time",
        begin.elapsed(),
        raced.iter().map(|it| it.refused).sum::<usize>()
    );
}
