//! An address belongs to the interface, port and MAC address its pod was first seen on.

use std::net::IpAddr;
use std::sync::mpsc;
use std::time::Duration;

use rolegate_agent::attachment::{Attachments, Kind, Verdict};
use rolegate_agent::redirect::Backend;
use rolegate_testkit::lab::{NODE_V4, Pod, PodLink};
use tokio_util::sync::CancellationToken;

use crate::scene::{DIRECT, Scene, fetch, on};

fn open(scene: &Scene, pattern: Option<&str>) -> anyhow::Result<Attachments> {
    let pattern = pattern.map(str::parse).transpose()?;
    Ok(scene.lab.node().run(|| Attachments::open(pattern))??)
}

fn addresses(pod: &Pod) -> [IpAddr; 2] {
    [pod.v4.into(), pod.v6.into()]
}

#[test]
fn threat_01_an_address_is_found_on_its_interface_and_others_are_not_pods() -> anyhow::Result<()> {
    let scene = Scene::new(Backend::None)?;
    let veth = scene.pod()?;
    let bridged = scene.lab.pod("10.2.0.7", PodLink::Bridge)?;
    let macvlan = scene.lab.pod("10.3.0.7", PodLink::Macvlan)?;
    let attachments = open(&scene, None)?;
    for pod in [&veth, &bridged, &macvlan] {
        for (addr, direct) in addresses(pod).into_iter().zip(DIRECT) {
            fetch(pod, direct)?;
            let found = attachments.resolve(addr)?.unwrap();
            assert_eq!(found.name, pod.interface);
            assert_eq!(found.can_be_forged(), pod.interface == "mac0");
            match found.kind {
                Kind::PointToPoint => assert_eq!(pod.interface, veth.interface),
                Kind::Bridge { mac, port } => {
                    let index = scene.lab.node().exec(&format!(
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
    let node = scene.lab.node();
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
        assert_eq!(attachments.resolve(other.parse()?)?, None, "{other}");
    }
    let only = open(&scene, Some("cni0"))?;
    assert_eq!(only.resolve(veth.v4.into())?, None);
    assert!(only.resolve(bridged.v4.into())?.is_some());
    Ok(())
}

#[test]
fn threat_02_an_address_that_moves_is_nobody_s_until_its_new_pod_is_known() -> anyhow::Result<()> {
    let scene = Scene::new(Backend::None)?;
    let attachments = open(&scene, Some("eni+"))?;
    let old = scene.pod()?;
    for addr in addresses(&old) {
        assert_eq!(attachments.check("old", addr)?, Verdict::Unknown);
        attachments.seen("old", addr)?;
        assert_eq!(attachments.check("old", addr)?, Verdict::Same);
    }
    drop(old);
    let new = scene.pod()?;
    for addr in addresses(&new) {
        assert_eq!(attachments.check("old", addr)?, Verdict::Changed);
        attachments.seen("old", addr)?;
        assert_eq!(attachments.check("old", addr)?, Verdict::Changed);
        attachments.seen("new", addr)?;
        assert_eq!(attachments.check("new", addr)?, Verdict::Same);
        assert_eq!(attachments.check("old", addr)?, Verdict::Unknown);
    }
    Ok(())
}

/// The neighbour takes the victim's addresses: it answers for them, and sends from them.
fn forge(thief: &Pod, victim: &Pod) -> anyhow::Result<()> {
    thief.exec(&format!("ip addr add {}/16 dev eth0", victim.v4))?;
    thief.exec(&format!("ip addr add {}/64 dev eth0 nodad", victim.v6))?;
    Ok(())
}

#[test]
fn threat_03_a_forged_arp_reply_does_not_move_an_address() -> anyhow::Result<()> {
    for link in [PodLink::Bridge, PodLink::Macvlan] {
        let scene = Scene::new(Backend::None)?;
        let net = if link == PodLink::Bridge { 2 } else { 3 };
        let victim = scene.lab.pod(&format!("10.{net}.0.5"), link)?;
        let thief = scene.lab.pod(&format!("10.{net}.0.66"), link)?;
        let attachments = open(&scene, None)?;
        for (addr, direct) in addresses(&victim).into_iter().zip(DIRECT) {
            fetch(&victim, direct)?;
            attachments.seen("victim", addr)?;
            assert_eq!(attachments.check("victim", addr)?, Verdict::Same);
        }
        let changes = following(&scene, &attachments, || {
            forge(&thief, &victim)?;
            // The node asks who has the address; the victim is kept from answering first.
            for (addr, direct) in addresses(&victim).into_iter().zip(DIRECT) {
                let neighbours = format!("ip neigh del {addr} dev {}", victim.interface);
                scene.lab.node().exec(&neighbours)?;
                victim.exec("ip link set eth0 down")?;
                let taken = crate::scene::Client::connect(&thief, Some(addr), direct);
                assert!(taken.is_ok(), "the theft is real");
                victim.exec("ip link set eth0 up")?;
                assert_eq!(attachments.check("victim", addr)?, Verdict::Changed);
            }
            Ok(())
        })?;
        for addr in addresses(&victim) {
            assert!(changes.contains(&addr), "{addr} in {changes:?}");
        }
    }
    Ok(())
}

#[test]
fn an_interface_that_goes_is_told_at_once() -> anyhow::Result<()> {
    let scene = Scene::new(Backend::None)?;
    let attachments = open(&scene, None)?;
    let (veth, bridged) = (scene.pod()?, scene.lab.pod("10.2.0.7", PodLink::Bridge)?);
    let mut gone = Vec::new();
    for pod in [&veth, &bridged] {
        for (addr, direct) in addresses(pod).into_iter().zip(DIRECT) {
            fetch(pod, direct)?;
            attachments.seen("pod", addr)?;
            gone.push(addr);
        }
    }
    let changes = following(&scene, &attachments, || {
        for pod in [&veth, &bridged] {
            let port = pod.port.as_deref().unwrap();
            scene.lab.node().exec(&format!("ip link del {port}"))?;
        }
        Ok(())
    })?;
    for addr in gone {
        assert!(changes.contains(&addr), "{addr} in {changes:?}");
        assert_ne!(attachments.check("pod", addr)?, Verdict::Same);
    }
    assert!(!changes.contains(&NODE_V4.into()));
    Ok(())
}

/// What the event stream names while something is done: read until nothing new has come for a
/// while after the first.
fn following(
    scene: &Scene,
    attachments: &Attachments,
    work: impl FnOnce() -> anyhow::Result<()> + Send,
) -> anyhow::Result<Vec<IpAddr>> {
    let (names, changes) = mpsc::channel();
    let cancel = CancellationToken::new();
    std::thread::scope(|scope| {
        let (ready, opened) = mpsc::channel();
        let run = cancel.clone();
        scope.spawn(move || {
            on(scene.lab.node(), || async {
                let follow = attachments.run(
                    |addr| {
                        let _ = names.send(addr);
                    },
                    run,
                );
                tokio::pin!(follow);
                // Subscribed once it has been polled for the first time.
                let first = tokio::time::timeout(Duration::from_millis(1), &mut follow).await;
                let _ = ready.send(());
                match first {
                    Ok(ended) => ended,
                    Err(_) => follow.await,
                }
            })
        });
        opened.recv()?;
        let done = work();
        let mut seen = Vec::new();
        while let Ok(addr) = changes.recv_timeout(Duration::from_secs(1)) {
            seen.push(addr);
        }
        cancel.cancel();
        done.map(|()| seen)
    })
}
