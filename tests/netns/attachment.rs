//! An address belongs to the attachment of its pod: on a network that pods share, the port that the
//! container runtime recorded; on other networks, the interface in the routing table.

use std::net::IpAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rolegate_agent::attachment::{
    AttachmentOptions, Attachments, EVENT_BUFFER, Kind, PodId, Unrecorded, Verdict,
};
use rolegate_redirect::Backend;
use rolegate_testkit::lab::{Pod, PodLink, PodName, write_record};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::harness::{Client, DIRECT, RedirectHarness, fetch, on};

/// Timeout for events on a machine that may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// The node's addresses, with a directory for the container runtime's records.
pub(crate) struct Fixture {
    attachments: Attachments,
    results: TempDir,
}

fn open(harness: &RedirectHarness, pattern: Option<&str>) -> anyhow::Result<Fixture> {
    open_with(harness, pattern, EVENT_BUFFER)
}

/// Creates the harness with a buffer of this size, in bytes, for the kernel's events.
pub(crate) fn open_with(
    harness: &RedirectHarness,
    pattern: Option<&str>,
    event_buffer: usize,
) -> anyhow::Result<Fixture> {
    let results = tempfile::tempdir()?;
    let options = AttachmentOptions {
        interface: pattern.map(str::parse).transpose()?,
        results_dir: Some(results.path().to_owned()),
        results_owner: 0,
        netns_dir: "/run/netns".into(),
        unrecorded: Unrecorded::Refuse,
        event_buffer,
    };
    let attachments = harness.lab.node().run(|| Attachments::open(options))??;
    Ok(Fixture {
        attachments,
        results,
    })
}

impl Deref for Fixture {
    type Target = Attachments;

    fn deref(&self) -> &Attachments {
        &self.attachments
    }
}

impl Fixture {
    /// The container runtime recorded the pod with this UID.
    pub(crate) fn record(
        &self,
        harness: &RedirectHarness,
        pod: &Pod,
        uid: &str,
    ) -> anyhow::Result<PathBuf> {
        let of = PodName {
            namespace: "shop",
            name: uid,
            uid,
        };
        let file = pod.record(harness.lab.node(), self.results.path(), of)?;
        self.read_records();
        Ok(file)
    }

    /// Returns the verdict for a connection that is accepted now.
    pub(crate) fn check(&self, uid: &str, addr: IpAddr) -> anyhow::Result<Verdict> {
        Ok(self.attachments.check(uid, addr, Instant::now())?)
    }

    /// Returns the verdict on each of the pod's addresses.
    pub(crate) fn verdicts(&self, uid: &str, pod: &Pod) -> anyhow::Result<[Verdict; 2]> {
        let [v4, v6] = addresses(pod);
        Ok([self.check(uid, v4)?, self.check(uid, v6)?])
    }
}

pub(crate) fn pod_id(uid: &str) -> PodId {
    PodId {
        uid: uid.into(),
        namespace: "shop".into(),
        name: uid.into(),
    }
}

/// The node knows the MAC address and port of the pod, because the pod's responses come from the
/// same interface as its requests.
pub(crate) fn talk(pod: &Pod) -> anyhow::Result<()> {
    for direct in DIRECT {
        fetch(pod, direct)?;
    }
    Ok(())
}

pub(crate) fn addresses(pod: &Pod) -> [IpAddr; 2] {
    [pod.v4.into(), pod.v6.into()]
}

#[test]
fn threat_01_an_address_is_found_on_its_interface_and_others_are_not_pods() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::None)?;
    let veth = harness.pod()?;
    let bridged = harness.lab.pod("10.2.0.7", PodLink::Bridge)?;
    let macvlan = harness.lab.pod("10.3.0.7", PodLink::Macvlan)?;
    let fixture = open(&harness, None)?;
    for pod in [&veth, &bridged, &macvlan] {
        for (addr, direct) in addresses(pod).into_iter().zip(DIRECT) {
            fetch(pod, direct)?;
            let found = fixture.resolve(addr)?.unwrap();
            assert_eq!(found.name, pod.interface);
            assert_eq!(found.can_be_forged(), pod.interface == "mac0");
            match found.kind {
                Kind::PointToPoint => assert_eq!(pod.interface, veth.interface),
                Kind::Bridge { mac, port } => {
                    let index = harness.lab.node().exec(&format!(
                        "ip -o link show {}",
                        bridged.port.as_deref().unwrap()
                    ))?;
                    assert!(index.starts_with(&format!("{}:", port.unwrap())));
                    let links = bridged.exec("ip -o link show eth0")?;
                    assert!(links.contains(&mac.unwrap().to_string()));
                }
                Kind::Shared { mac } => {
                    let links = macvlan.exec("ip -o link show eth0")?;
                    assert!(links.contains(&mac.unwrap().to_string()));
                }
            }
        }
    }
    let node = harness.lab.node();
    node.exec("ip route add 192.0.2.0/24 via 10.2.0.7")?;
    node.exec("ip route add 2001:db8::/64 via fd02::7")?;
    for other in [
        "127.0.0.1",
        "10.0.0.1",     // this host
        "10.0.0.254",   // the uplink's network
        "192.0.2.1",    // behind a pod
        "198.51.100.1", // behind the gateway
        "10.2.0.1",     // this host's end of the bridge
        "::1",
        "fd10::fe",
        "2001:db8::1",
    ] {
        assert_eq!(fixture.resolve(other.parse()?)?, None, "{other}");
    }
    let only = open(&harness, Some("cni0"))?;
    assert_eq!(only.resolve(veth.v4.into())?, None);
    assert!(only.resolve(bridged.v4.into())?.is_some());
    Ok(())
}

#[test]
fn threat_02_an_address_that_moves_is_nobody_s_until_its_new_pod_is_known() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::None)?;
    let fixture = open(&harness, Some("eni+"))?;
    let old = harness.pod()?;
    assert_eq!(fixture.verdicts("old", &old)?, [Verdict::Unknown; 2]);
    fixture.seen(pod_id("old"), &addresses(&old));
    assert_eq!(fixture.verdicts("old", &old)?, [Verdict::Same; 2]);
    drop(old);
    let new = harness.pod()?;
    assert_eq!(fixture.verdicts("old", &new)?, [Verdict::Changed; 2]);
    fixture.seen(pod_id("old"), &addresses(&new));
    assert_eq!(fixture.verdicts("old", &new)?, [Verdict::Changed; 2]);
    fixture.seen(pod_id("new"), &addresses(&new));
    assert_eq!(fixture.verdicts("new", &new)?, [Verdict::Same; 2]);
    assert_eq!(fixture.verdicts("old", &new)?, [Verdict::Changed; 2]);
    fixture.forget("old");
    assert_eq!(fixture.verdicts("old", &new)?, [Verdict::Unknown; 2]);
    assert_eq!(fixture.verdicts("new", &new)?, [Verdict::Same; 2]);
    Ok(())
}

#[test]
fn of_two_pods_with_one_address_the_one_that_is_left_keeps_its_place() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::None)?;
    let fixture = open(&harness, None)?;
    let (veth, bridged) = (
        harness.pod()?,
        harness.lab.pod("10.2.0.7", PodLink::Bridge)?,
    );
    fixture.record(&harness, &bridged, "alive")?;
    for pod in [&veth, &bridged] {
        talk(pod)?;
        for first in ["alive", "ending"] {
            let second = if first == "alive" { "ending" } else { "alive" };
            fixture.seen(pod_id(first), &addresses(pod));
            fixture.seen(pod_id(second), &addresses(pod));
            fixture.forget("ending");
            assert_eq!(
                fixture.verdicts("alive", pod)?,
                [Verdict::Same; 2],
                "{first}"
            );
            fixture.forget("alive");
        }
    }
    Ok(())
}

#[test]
fn a_bridge_s_address_is_bound_by_the_record_and_by_nothing_else() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::None)?;
    let fixture = open(&harness, None)?;
    let pod = harness.lab.pod("10.2.0.7", PodLink::Bridge)?;
    let other = harness.lab.pod("10.2.0.8", PodLink::Bridge)?;
    fixture.seen(pod_id("pod"), &addresses(&pod));
    talk(&pod)?;
    assert_eq!(fixture.verdicts("pod", &pod)?, [Verdict::Unrecorded; 2]);
    fixture.read_records();
    let concern = fixture.concern().unwrap();
    assert!(concern.starts_with("2 addresses"), "{concern}");

    // The record of a previous sandbox of the same pod, and a record whose interface belongs to
    // another pod.
    fixture.record(&harness, &pod, "before")?;
    assert_eq!(fixture.verdicts("pod", &pod)?, [Verdict::Unrecorded; 2]);
    let of = |uid| PodName {
        namespace: "shop",
        name: uid,
        uid,
    };
    let file = fixture.results.path().join("lab-pod-eth0");
    let node = harness.lab.node();
    let record = pod.cni_result(node, of("pod"))?;
    std::fs::remove_file(
        fixture
            .results
            .path()
            .join(format!("lab-{}-eth0", pod.name())),
    )?;
    for (pointer, value) in [
        (
            "/result/interfaces/2/sandbox",
            json!(format!("/var/run/netns/{}", other.name())),
        ),
        ("/result/interfaces/2/sandbox", json!("/var/run/netns/gone")),
        ("/result/interfaces/1/name", json!(other.port)),
        ("/result/interfaces/1/name", json!("no-such")),
        (
            "/result/interfaces/1/name",
            json!("a-name-that-is-longer-than-any"),
        ),
        ("/result/interfaces/2/mac", json!("")),
        ("/cniArgs/4/1", json!("other")),
    ] {
        let mut wrong = record.clone();
        *wrong.pointer_mut(pointer).unwrap() = value.clone();
        write_record(&file, &wrong)?;
        fixture.read_records();
        let verdicts = fixture.verdicts("pod", &pod)?;
        assert_eq!(verdicts, [Verdict::Unrecorded; 2], "{pointer} {value}");
    }
    write_record(&file, &record)?;
    let port = pod.port.as_deref().unwrap();
    node.exec(&format!("ip link set {port} nomaster"))?;
    assert!(!fixture.read_records(), "no port of the bridge");
    node.exec(&format!("ip link set {port} master cni0"))?;
    assert!(fixture.read_records());
    talk(&pod)?;
    assert_eq!(fixture.verdicts("pod", &pod)?, [Verdict::Same; 2]);
    assert_eq!(fixture.concern(), None);

    // An address in two existing namespaces belongs to neither.
    let mut second = other.cni_result(node, of("other"))?;
    second["result"]["ips"] = record["result"]["ips"].clone();
    let doubled = fixture.results.path().join("lab-other-eth0");
    write_record(&doubled, &second)?;
    assert!(fixture.read_records());
    assert_eq!(fixture.verdicts("pod", &pod)?, [Verdict::Unrecorded; 2]);
    std::fs::remove_file(doubled)?;
    fixture.read_records();
    assert_eq!(fixture.verdicts("pod", &pod)?, [Verdict::Same; 2]);
    std::fs::remove_file(file)?;
    fixture.read_records();
    assert_eq!(fixture.verdicts("pod", &pod)?, [Verdict::Unrecorded; 2]);
    // The pod is terminating, which operators need not look into.
    assert_eq!(fixture.concern(), None);
    Ok(())
}

#[test]
fn a_record_identifies_a_pod_without_a_reported_address() -> anyhow::Result<()> {
    for link in [PodLink::Bridge, PodLink::Veth] {
        let harness = RedirectHarness::new(Backend::None)?;
        let fixture = open(&harness, None)?;
        let pod = harness.lab.pod("10.2.0.7", link)?;
        let other = harness.lab.pod("10.2.0.8", link)?;
        talk(&pod)?;
        for addr in addresses(&pod) {
            assert_eq!(fixture.recorded_owner(addr), None);
            assert!(!fixture.adopt(pod_id("pod"), addr)?);
        }
        let file = fixture.record(&harness, &pod, "pod")?;
        for addr in addresses(&pod) {
            assert_eq!(fixture.recorded_owner(addr).as_deref(), Some("pod"));
            assert!(!fixture.adopt(pod_id("other"), addr)?, "another UID");
            assert!(fixture.adopt(pod_id("pod"), addr)?);
        }
        assert_eq!(fixture.verdicts("pod", &pod)?, [Verdict::Same; 2]);
        // The claim ends with the record.
        std::fs::remove_file(&file)?;
        fixture.read_records();
        assert_eq!(fixture.recorded_owner(addresses(&pod)[0]), None);
        assert_eq!(fixture.verdicts("pod", &pod)?, [Verdict::Unknown; 2]);

        // A record of a dead pod whose address belongs to another pod now, by the kernel's routes
        // and by a second record.
        let node = harness.lab.node();
        let dead = PodName {
            namespace: "shop",
            name: "dead",
            uid: "dead",
        };
        let mut stale = other.cni_result(node, dead)?;
        stale["result"]["ips"] = pod.cni_result(node, dead)?["result"]["ips"].clone();
        write_record(&file, &stale)?;
        fixture.read_records();
        for addr in addresses(&pod) {
            let adopted = fixture.adopt(pod_id("dead"), addr)?;
            assert!(!adopted || fixture.check("dead", addr)? != Verdict::Same);
        }
        let file = fixture.results.path().join("lab-second-eth0");
        let name = PodName { uid: "pod", ..dead };
        write_record(&file, &pod.cni_result(node, name)?)?;
        fixture.read_records();
        for addr in addresses(&pod) {
            assert_eq!(fixture.recorded_owner(addr), None, "two live namespaces");
            assert!(!fixture.adopt(pod_id("pod"), addr)?);
        }
    }
    Ok(())
}

#[test]
fn a_new_record_is_followed_without_being_asked() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::None)?;
    let fixture = open(&harness, None)?;
    let pod = harness.lab.pod("10.2.0.7", PodLink::Bridge)?;
    let file = fixture.record(&harness, &pod, "pod")?;
    fixture.seen(pod_id("pod"), &addresses(&pod));
    talk(&pod)?;
    assert_eq!(fixture.verdicts("pod", &pod)?, [Verdict::Same; 2]);
    let (bound, changes) = mpsc::channel();
    let on_bound = move || {
        let _ = bound.send(());
    };
    following(&harness, &fixture, on_bound, || {
        std::fs::remove_file(&file)?;
        changes.recv_timeout(DEADLINE)?;
        let of = PodName {
            namespace: "shop",
            name: "pod",
            uid: "pod",
        };
        let record = pod.cni_result(harness.lab.node(), of)?;
        write_record(&file, &record)?;
        changes.recv_timeout(DEADLINE)?;
        assert_eq!(fixture.verdicts("pod", &pod)?, [Verdict::Same; 2]);

        // The folder is removed and recreated while no check runs; the pod's next request triggers
        // one.
        std::fs::remove_file(&file)?;
        changes.recv_timeout(DEADLINE)?;
        std::fs::remove_dir(fixture.results.path())?;
        std::fs::create_dir(fixture.results.path())?;
        write_record(&file, &record)?;
        eventually(|| {
            matches!(
                fixture.verdicts("pod", &pod),
                Ok([Verdict::Same, Verdict::Same])
            )
        });
        Ok(())
    })
}

/// The neighbor takes over the victim's addresses: it answers ARP requests for them and sends
/// packets from them.
fn forge(thief: &Pod, victim: &Pod) -> anyhow::Result<()> {
    thief.exec(&format!("ip addr add {}/16 dev eth0", victim.v4))?;
    thief.exec(&format!("ip addr add {}/64 dev eth0 nodad", victim.v6))?;
    Ok(())
}

#[test]
fn threat_03_a_forged_arp_reply_does_not_move_an_address() -> anyhow::Result<()> {
    for link in [PodLink::Bridge, PodLink::Macvlan] {
        let harness = RedirectHarness::new(Backend::None)?;
        let net = if link == PodLink::Bridge { 2 } else { 3 };
        let victim = harness.lab.pod(&format!("10.{net}.0.5"), link)?;
        let thief = harness.lab.pod(&format!("10.{net}.0.66"), link)?;
        let fixture = open(&harness, None)?;
        fixture.record(&harness, &victim, "victim")?;
        fixture.seen(pod_id("victim"), &addresses(&victim));
        talk(&victim)?;
        assert_eq!(fixture.verdicts("victim", &victim)?, [Verdict::Same; 2]);
        following(
            &harness,
            &fixture,
            || (),
            || {
                forge(&thief, &victim)?;
                // The node sends an ARP request. The victim is prevented from answering first.
                for (addr, direct) in addresses(&victim).into_iter().zip(DIRECT) {
                    let before = fixture.generation();
                    let neighbours = format!("ip neigh del {addr} dev {}", victim.interface);
                    harness.lab.node().exec(&neighbours)?;
                    victim.exec("ip link set eth0 down")?;
                    let taken = Client::connect(&thief, Some(addr), direct);
                    assert!(taken.is_ok(), "the theft is real");
                    eventually(|| fixture.generation() > before);
                    victim.exec("ip link set eth0 up")?;
                    assert_eq!(fixture.check("victim", addr)?, Verdict::Changed);
                }
                Ok(())
            },
        )?;
    }
    Ok(())
}

#[test]
fn threat_03_what_a_neighbour_undid_before_the_look_is_seen_by_it() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::None)?;
    let victim = harness.lab.pod("10.2.0.5", PodLink::Bridge)?;
    let fixture = open(&harness, None)?;
    fixture.record(&harness, &victim, "victim")?;
    fixture.seen(pod_id("victim"), &addresses(&victim));
    talk(&victim)?;
    let mac = victim.mac("eth0")?;
    for addr in addresses(&victim) {
        assert_eq!(fixture.check("victim", addr)?, Verdict::Same);
        // No task reads the kernel's events in this test.
        for now in ["02:00:00:00:00:66", &mac] {
            let neighbour = format!("ip neigh replace {addr} lladdr {now} dev cni0");
            harness.lab.node().exec(&neighbour)?;
        }
        assert_eq!(fixture.check("victim", addr)?, Verdict::Changed);
    }
    Ok(())
}

#[test]
fn an_interface_that_goes_is_told_at_once() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::None)?;
    let fixture = open(&harness, None)?;
    let (veth, bridged) = (
        harness.pod()?,
        harness.lab.pod("10.2.0.7", PodLink::Bridge)?,
    );
    fixture.record(&harness, &bridged, "bridged")?;
    for (uid, pod) in [("veth", &veth), ("bridged", &bridged)] {
        fixture.seen(pod_id(uid), &addresses(pod));
        talk(pod)?;
        assert_eq!(fixture.verdicts(uid, pod)?, [Verdict::Same; 2]);
    }
    following(
        &harness,
        &fixture,
        || (),
        || {
            for (uid, pod) in [("veth", &veth), ("bridged", &bridged)] {
                let before = fixture.generation();
                let port = pod.port.as_deref().unwrap();
                harness.lab.node().exec(&format!("ip link del {port}"))?;
                eventually(|| fixture.generation() > before);
                for addr in addresses(pod) {
                    assert_ne!(fixture.check(uid, addr)?, Verdict::Same);
                }
            }
            Ok(())
        },
    )
}

/// Polls until the verdict is the expected one.
pub(crate) fn eventually(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(
            Instant::now() < deadline,
            "the condition was not met in time"
        );
        std::thread::yield_now();
    }
}

/// Runs a future while the kernel's events and the records are followed.
fn following(
    harness: &RedirectHarness,
    attachments: &Attachments,
    on_bound: impl Fn() + Send + Sync,
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    std::thread::scope(|scope| {
        let run = cancel.clone();
        let follow = scope.spawn(move || {
            on(harness.lab.node(), || {
                run.run_until_cancelled(attachments.run(on_bound))
            })
        });
        let _end = cancel.drop_guard();
        let done = work();
        drop(_end);
        follow
            .join()
            .map_err(|_| anyhow::anyhow!("the follower panicked"))?;
        done
    })
}
