//! The check from inside a pod distinguishes the agent, no response, and the node's metadata
//! service.

use rolegate_redirect::Backend;
use rolegate_redirect::check::{Outcome, SelfCheck, probe};
use rolegate_testkit::lab::{Pod, PodLink};

use crate::harness::{RedirectHarness, on};

fn outcomes(pod: &Pod) -> [Outcome; 2] {
    let path = pod.path();
    // The check runs in the test's namespace and enters the pod's namespace itself.
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(probe(Some(&path)))
        .unwrap();
    let open = [&result.v4, &result.v6]
        .iter()
        .any(|outcome| matches!(outcome, Outcome::Open(_)));
    assert_eq!(result.is_open(), open);
    [result.v4, result.v6]
}

#[test]
fn agent_nothing_and_metadata_are_told_apart() -> anyhow::Result<()> {
    let mut harness = RedirectHarness::new(Backend::Nftables)?;
    let pod = harness.pod()?;
    let other = harness.lab.pod("10.1.0.6", PodLink::VethNamed("vlan6"))?;
    for outcome in outcomes(&pod) {
        assert!(matches!(outcome, Outcome::Open(_)), "{outcome:?}");
    }
    harness.apply("eni+")?;
    for outcome in outcomes(&pod) {
        assert_eq!(outcome, Outcome::Redirected);
    }
    for outcome in outcomes(&other) {
        assert!(matches!(outcome, Outcome::Blocked(_)), "{outcome:?}");
    }
    harness.agent = None;
    for outcome in outcomes(&pod) {
        assert!(matches!(outcome, Outcome::Blocked(_)), "{outcome:?}");
    }
    Ok(())
}

#[test]
fn namespaces_are_looked_at_in_turn_and_the_host_s_is_left_out() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::Nftables)?;
    let pods = [
        harness.pod()?,
        harness.lab.pod("10.1.0.6", PodLink::VethNamed("vlan6"))?,
    ];
    harness.apply("eni+")?;
    let dir = tempfile::tempdir()?;
    for (name, netns) in [
        ("a", &*pods[0]),
        ("b", &*pods[1]),
        ("host", harness.lab.node()),
    ] {
        std::os::unix::fs::symlink(netns.path(), dir.path().join(name))?;
    }
    let seen = on(harness.lab.node(), || async {
        let mut check = SelfCheck::new(dir.path());
        let mut seen = Vec::new();
        for _ in 0..3 {
            let (path, result) = check.next().await.unwrap().unwrap();
            seen.push((path, result.v4 == Outcome::Redirected));
        }
        seen
    });
    let expected = [("a", true), ("b", false), ("a", true)];
    assert_eq!(
        seen,
        expected.map(|(name, redirected)| (dir.path().join(name), redirected))
    );
    Ok(())
}
