//! What becomes of the redirect when nobody answers behind it, and by hand.

use anyhow::ensure;
use rolegate_devkit::NODE_SECRET_MARKER;
use rolegate_testkit::lab::{Lab, PodLink};
use rolegate_testkit::{Cluster, eventually};

use crate::ask::{self, METADATA, METADATA_6, Reply};
use crate::site::{DEADLINE, Site, rolegate, start_imds};

/// Whether it is the agent that answers: it knows no pod here.
fn is_agent(reply: &Reply) -> bool {
    reply.status == 404 && reply.body.contains("no pod of this node is known")
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_07_redirect_stays_when_the_agent_stops() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let site = Site::new("stays", cluster).await?;
    let pod = site.pod("10.1.0.5")?;
    let mut agent = site.ready_agent(&[]).await?;
    assert!(agent.stop().await?.success());
    for target in [METADATA, METADATA_6] {
        let answer = ask::get_at(&pod, target, "/latest/user-data");
        assert!(answer.is_err(), "{answer:?}");
    }
    assert!(!site.reached("user-data"));
    let netns = pod.path().display().to_string();
    let check = rolegate(site.lab.node(), &["redirect", "check", "--netns", &netns])?;
    assert!(check.status.success(), "{check:?}");

    // Killed is no different, and the next agent begins where the last one ended.
    let mut agent = site.ready_agent(&[]).await?;
    agent.kill();
    assert!(ask::get(&pod, "/latest/user-data").is_err() && !site.reached("user-data"));
    let _agent = site.ready_agent(&[]).await?;
    assert!(is_agent(&ask::get(&pod, "/latest/user-data")?));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pain_04_redirect_remove_at_exit_opens_it() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let site = Site::new("opens", cluster).await?;
    let pod = site.pod("10.1.0.5")?;
    let mut agent = site.ready_agent(&["--redirect-remove-at-exit"]).await?;
    assert!(is_agent(&ask::get(&pod, "/latest/user-data")?));
    assert!(
        agent.log().contains("--redirect-remove-at-exit"),
        "a choice that is told of"
    );
    assert!(agent.stop().await?.success());
    for target in [METADATA, METADATA_6] {
        let open = ask::get_at(&pod, target, "/latest/user-data")?;
        assert!(open.body.contains(NODE_SECRET_MARKER), "{open:?}");
    }
    let netns = pod.path().display().to_string();
    let check = rolegate(site.lab.node(), &["redirect", "check", "--netns", &netns])?;
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_by_hand() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let _imds = start_imds(&lab).await?;
    let pod = lab.pod("10.1.0.5", PodLink::Veth)?;
    let netns = pod.path().display().to_string();
    let run = |arguments: &[&str]| -> anyhow::Result<(Option<i32>, String)> {
        let words: Vec<&str> = ["redirect"].iter().chain(arguments).copied().collect();
        let output = rolegate(lab.node(), &words)?;
        let text = String::from_utf8([output.stdout, output.stderr].concat())?;
        Ok((output.status.code(), text))
    };
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        let (code, shown) = run(&["show"])?;
        assert!(code == Some(0) && shown.contains("no rules"), "{shown}");
        let (code, text) = run(&["check", "--netns", &netns])?;
        assert!(code == Some(1), "{backend}: {code:?} {text}");

        let apply = [
            "apply",
            "--backend",
            backend,
            "--host-interface=eni+",
            "--host-ip=10.0.0.1",
            "--host-ipv6=fd10::1",
        ];
        for _ in 0..2 {
            let (code, text) = run(&apply)?;
            assert!(code == Some(0) && text.contains(backend), "{text}");
        }
        let (code, shown) = run(&["show"])?;
        assert!(
            code == Some(0) && shown.contains("169.254.169.254"),
            "{shown}"
        );
        let (code, json) = run(&["check", "--netns", &netns, "-o", "json"])?;
        let json: serde_json::Value = serde_json::from_str(&json)?;
        assert!(code == Some(0) && json["open"] == false, "{json}");

        let (code, text) = run(&["remove"])?;
        assert!(code == Some(0) && text.contains("removed ("), "{text}");
    }
    let (code, text) = run(&["remove"])?;
    assert!(
        code == Some(0) && text.contains("nothing to remove"),
        "{text}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_that_somebody_removes_is_put_back() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let site = Site::new("put-back", cluster).await?;
    let pod = site.pod("10.1.0.5")?;
    let _agent = site.ready_agent(&["--redirect-interval=100ms"]).await?;
    site.lab.node().exec("nft flush ruleset")?;
    eventually(DEADLINE, async || {
        let reply = ask::get(&pod, "/latest/user-data")?;
        ensure!(is_agent(&reply), "{reply:?}");
        let metrics = site.admin("/metrics")?.body;
        ensure!(metrics.contains("redirect_restored_total 1"), "{metrics}");
        Ok(())
    })
    .await
}
