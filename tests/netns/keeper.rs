//! The keeper puts back what others remove or alter, and leaves the rules when it ends.

use std::time::Duration;

use rolegate_agent::redirect::{Backend, Keeper, State};
use tokio_util::sync::CancellationToken;

use crate::scene::{AGENT, METADATA, Scene, fetch, for_each_backend, on};

for_each_backend!(
    rule_07_what_is_removed_or_altered_is_put_back,
    pain_04_rules_stay_at_the_end_unless_told_otherwise,
);

/// What others do to rules, as commands on the node.
fn vandals(scene: &Scene) -> Vec<Vec<String>> {
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
    let pod = scene.pod()?;
    let keeper = Keeper::new(scene.redirect("eni+"), Duration::from_millis(50));
    on(scene.lab.node(), || async {
        let mut status = keeper.status();
        let cancel = CancellationToken::new();
        let vandalise = async {
            let _end = cancel.clone().drop_guard();
            status.wait_for(|status| status.in_place).await?;
            for (expected, commands) in (1..).zip(vandals(&scene)) {
                for command in &commands {
                    // Part of it may have been put back between two commands.
                    let done = scene.lab.node().exec(command);
                    assert!(commands.len() > 1 || done.is_ok(), "{done:?}");
                }
                let wait = status.wait_for(|status| status.restored >= expected);
                tokio::time::timeout(Duration::from_secs(60), wait).await??;
                for metadata in METADATA {
                    assert_eq!(fetch(&pod, metadata)?, AGENT, "{commands:?}");
                }
            }
            anyhow::Ok(())
        };
        tokio::join!(keeper.run(cancel.clone()), vandalise).1
    })?;
    assert_eq!(scene.imds.hits(), 0);
    Ok(())
}

fn pain_04_rules_stay_at_the_end_unless_told_otherwise(backend: Backend) -> anyhow::Result<()> {
    let scene = Scene::new(backend)?;
    for (remove, left) in [(false, State::Altered), (true, State::Missing)] {
        let keeper = Keeper::new(scene.redirect("eni+"), Keeper::INTERVAL).remove_at_exit(remove);
        let mut status = keeper.status();
        on(scene.lab.node(), || async {
            let cancel = CancellationToken::new();
            let stop = async {
                let _ = status.wait_for(|status| status.in_place).await;
                cancel.cancel();
            };
            tokio::join!(keeper.run(cancel.clone()), stop);
        });
        // To one who did not put them there, rules that are there are someone else's.
        let redirect = scene.redirect("eni+");
        assert_eq!(on(scene.lab.node(), || redirect.state())?, left);
    }
    Ok(())
}
