//! The reconciler restores rules that other programs remove or change, and leaves the rules when it
//! exits.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rolegate_redirect::{Backend, Flavour, RedirectReconciler, State};
use rolegate_testkit::eventually;
use tokio_util::sync::CancellationToken;

use crate::harness::{AGENT, IMDS, METADATA, RedirectHarness, fetch, for_each_backend, on};

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
fn vandals(harness: &RedirectHarness) -> Vec<Vec<String>> {
    let mut all = filter_vandals(harness);
    all.extend(routing_vandals());
    all
}

fn filter_vandals(harness: &RedirectHarness) -> Vec<Vec<String>> {
    let Some(iptables) = harness.iptables() else {
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
    let harness = RedirectHarness::new(backend)?;
    let commands = vandals(&harness);
    is_put_back(&harness, Duration::from_millis(50), &commands)
}

/// The periodic check never runs here, since its interval is an hour. Legacy iptables sends no
/// notifications, so with that backend only the routing rules are restored at once.
fn what_the_kernel_tells_of_is_put_back_without_waiting_for_a_look(
    backend: Backend,
) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    let commands = if backend == Backend::Iptables(Flavour::Legacy) {
        routing_vandals()
    } else {
        vandals(&harness)
    };
    is_put_back(&harness, Duration::from_secs(3600), &commands)
}

fn is_put_back(
    harness: &RedirectHarness,
    interval: Duration,
    vandals: &[Vec<String>],
) -> anyhow::Result<()> {
    let pod = harness.pod()?;
    let reconciler = RedirectReconciler::new(harness.redirect("eni+"), interval);
    on(harness.lab.node(), || async {
        let mut status = reconciler.status();
        let cancel = CancellationToken::new();
        let vandalise = async {
            let _end = cancel.clone().drop_guard();
            status.wait_for(|status| status.in_place).await?;
            for commands in vandals {
                let before = status.borrow().restored;
                for command in commands {
                    // The reconciler may have restored some rules between two commands.
                    let done = harness.lab.node().exec(command);
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
                    assert_eq!(fetch(harness.lab.node(), metadata)?, IMDS, "the host's own");
                }
            }
            anyhow::Ok(())
        };
        tokio::join!(cancel.run_until_cancelled(reconciler.run()), vandalise).1
    })?;
    // Only requests of the host itself arrive, none of the pod.
    assert_eq!(harness.imds.hits(), 2 * vandals.len());
    Ok(())
}

/// The rules are flushed repeatedly without a pause, so that some flushes happen between installing
/// the rules and reading them back. The rules that were read then are not the expected ones.
fn what_is_flushed_while_it_is_put_back_comes_back(backend: Backend) -> anyhow::Result<()> {
    let harness = Arc::new(RedirectHarness::new(backend)?);
    let pod = harness.pod()?;
    // Legacy iptables does not report a flush.
    let interval = match backend {
        Backend::Iptables(Flavour::Legacy) => Duration::from_millis(50),
        _ => Duration::from_secs(3600),
    };
    let reconciler = RedirectReconciler::new(harness.redirect("eni+"), interval);
    on(harness.lab.node(), || async {
        let mut status = reconciler.status();
        let cancel = CancellationToken::new();
        let vandalise = async {
            let _end = cancel.clone().drop_guard();
            status.wait_for(|status| status.in_place).await?;
            let flushing = tokio::task::spawn_blocking({
                let harness = Arc::clone(&harness);
                move || (0..60).try_for_each(|_| harness.flush())
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
        tokio::join!(cancel.run_until_cancelled(reconciler.run()), vandalise).1
    })?;
    assert_eq!(harness.imds.hits(), 0);
    Ok(())
}

fn pain_04_rules_stay_at_the_end_unless_told_otherwise(backend: Backend) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    for (remove, left) in [(false, State::Altered), (true, State::Missing)] {
        let reconciler =
            RedirectReconciler::new(harness.redirect("eni+"), RedirectReconciler::INTERVAL);
        let mut status = reconciler.status();
        on(harness.lab.node(), || async {
            let cancel = CancellationToken::new();
            let stop = async {
                let _ = status.wait_for(|status| status.in_place).await;
                cancel.cancel();
            };
            tokio::join!(cancel.run_until_cancelled(reconciler.run()), stop);
        });
        // A reconciler that did not install the rules treats existing rules as those of another
        // agent.
        let redirect = harness.redirect("eni+");
        if remove {
            on(harness.lab.node(), || redirect.remove())?;
        }
        assert_eq!(on(harness.lab.node(), || redirect.state())?, left);
    }
    Ok(())
}
