//! The reconciler restores rules that other programs remove or change, and leaves the rules when it
//! exits.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rolegate_redirect::{Backend, Flavour, RedirectReconciler, State};
use rolegate_testkit::eventually;
use tokio_util::sync::CancellationToken;

use crate::scene::{AGENT, IMDS, METADATA, Scene, fetch, for_each_backend, on};

for_each_backend!(
    rule_07_what_is_removed_or_altered_is_put_back,
    what_the_kernel_tells_of_is_put_back_without_waiting_for_a_look,
    what_is_flushed_while_it_is_put_back_comes_back,
    pain_04_rules_stay_at_the_end_unless_told_otherwise,
);

/// Commands on the node with which other programs damage routing rules.
fn routing_vandals() -> Vec<Vec<String>> {
    vec![
        vec!["ip rule del priority 2".into()],
        vec!["ip -6 rule del priority 2".into()],
        vec!["ip rule del priority 1".into()],
        vec![
            "ip rule flush".into(),
            "ip rule add priority 32766 lookup main".into(),
        ],
    ]
}

/// Returns commands on the node with which other programs damage the rules.
fn vandals(scene: &Scene) -> Vec<Vec<String>> {
    let mut all = filter_vandals(scene);
    all.extend(routing_vandals());
    all
}

fn filter_vandals(scene: &Scene) -> Vec<Vec<String>> {
    let Some(iptables) = scene.iptables() else {
        return [
            "nft delete table inet rolegate",
            "nft flush ruleset",
            "nft flush chain inet rolegate forward",
            "nft insert rule inet rolegate forward accept",
        ]
        .map(|command| vec![command.to_owned()])
        .to_vec();
    };
    let ip6tables = iptables.replace("iptables", "ip6tables");
    vec![
        vec![format!("{iptables} -t nat -F")],
        vec![format!("{ip6tables} -t filter -F")],
        vec![format!("{iptables} -t raw -F ROLEGATE-RAW")],
        vec![format!("{iptables} -I FORWARD 1 -j ACCEPT")],
        vec![
            format!("{iptables} -t nat -F PREROUTING"),
            format!("{iptables} -t nat -F ROLEGATE-PREROUTING"),
            format!("{iptables} -t nat -X ROLEGATE-PREROUTING"),
        ],
    ]
}

fn rule_07_what_is_removed_or_altered_is_put_back(backend: Backend) -> anyhow::Result<()> {
    let scene = Scene::new(backend)?;
    let commands = vandals(&scene);
    is_put_back(&scene, Duration::from_millis(50), &commands)
}

/// The periodic check never runs here, since its interval is an hour. Legacy iptables sends no
/// notifications, so with that backend only the routing rules are restored at once.
fn what_the_kernel_tells_of_is_put_back_without_waiting_for_a_look(
    backend: Backend,
) -> anyhow::Result<()> {
    let scene = Scene::new(backend)?;
    let commands = if backend == Backend::Iptables(Flavour::Legacy) {
        routing_vandals()
    } else {
        vandals(&scene)
    };
    is_put_back(&scene, Duration::from_secs(3600), &commands)
}

fn is_put_back(scene: &Scene, interval: Duration, vandals: &[Vec<String>]) -> anyhow::Result<()> {
    let pod = scene.pod()?;
    let reconciler = RedirectReconciler::new(scene.redirect("eni+"), interval);
    on(scene.lab.node(), || async {
        let mut status = reconciler.status();
        let cancel = CancellationToken::new();
        let vandalise = async {
            let _end = cancel.clone().drop_guard();
            status.wait_for(|status| status.in_place).await?;
            for commands in vandals {
                let before = status.borrow().restored;
                for command in commands {
                    // The reconciler may have restored some rules between two commands.
                    let done = scene.lab.node().exec(command);
                    assert!(commands.len() > 1 || done.is_ok(), "{done:?}");
                }
                let wait = status.wait_for(|status| status.restored > before);
                tokio::time::timeout(Duration::from_secs(60), wait)
                    .await
                    .with_context(|| format!("{commands:?}"))??;
                for metadata in METADATA {
                    eventually(Duration::from_secs(60), async || {
                        ensure!(fetch(&pod, metadata)? == AGENT, "{commands:?}");
                        Ok(())
                    })
                    .await?;
                    assert_eq!(fetch(scene.lab.node(), metadata)?, IMDS, "the host's own");
                }
            }
            anyhow::Ok(())
        };
        tokio::join!(reconciler.run(cancel.clone()), vandalise).1
    })?;
    // Only requests of the host itself arrive, none of the pod.
    assert_eq!(scene.imds.hits(), 2 * vandals.len());
    Ok(())
}

/// The rules are flushed repeatedly without a pause, so that some flushes happen between installing
/// the rules and reading them back. The rules that were read then are not the expected ones.
fn what_is_flushed_while_it_is_put_back_comes_back(backend: Backend) -> anyhow::Result<()> {
    let scene = Arc::new(Scene::new(backend)?);
    let pod = scene.pod()?;
    // Legacy iptables does not report a flush.
    let interval = match backend {
        Backend::Iptables(Flavour::Legacy) => Duration::from_millis(50),
        _ => Duration::from_secs(3600),
    };
    let reconciler = RedirectReconciler::new(scene.redirect("eni+"), interval);
    on(scene.lab.node(), || async {
        let mut status = reconciler.status();
        let cancel = CancellationToken::new();
        let vandalise = async {
            let _end = cancel.clone().drop_guard();
            status.wait_for(|status| status.in_place).await?;
            let flushing = tokio::task::spawn_blocking({
                let scene = Arc::clone(&scene);
                move || (0..60).try_for_each(|_| scene.flush())
            });
            flushing.await??;
            eventually(Duration::from_secs(60), async || {
                for metadata in METADATA {
                    ensure!(fetch(&pod, metadata)? == AGENT);
                }
                Ok(())
            })
            .await
        };
        tokio::join!(reconciler.run(cancel.clone()), vandalise).1
    })?;
    assert_eq!(scene.imds.hits(), 0);
    Ok(())
}

fn pain_04_rules_stay_at_the_end_unless_told_otherwise(backend: Backend) -> anyhow::Result<()> {
    let scene = Scene::new(backend)?;
    for (remove, left) in [(false, State::Altered), (true, State::Missing)] {
        let reconciler =
            RedirectReconciler::new(scene.redirect("eni+"), RedirectReconciler::INTERVAL)
                .remove_at_exit(remove);
        let mut status = reconciler.status();
        on(scene.lab.node(), || async {
            let cancel = CancellationToken::new();
            let stop = async {
                let _ = status.wait_for(|status| status.in_place).await;
                cancel.cancel();
            };
            tokio::join!(reconciler.run(cancel.clone()), stop);
        });
        // A reconciler that did not install the rules treats existing rules as those of another
        // agent.
        let redirect = scene.redirect("eni+");
        assert_eq!(on(scene.lab.node(), || redirect.state())?, left);
    }
    Ok(())
}
