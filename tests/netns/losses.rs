//! Lost kernel events about pods' addresses, when more events arrive than the kernel's buffer
//! holds.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Instant;

use rolegate_agent::attachment::{EVENT_BUFFER, Kind, Verdict};
use rolegate_redirect::Backend;
use rolegate_testkit::lab::{Pod, PodLink};

use crate::attachment::{Fixture, addresses, eventually, open_with, pod_id, talk};
use crate::harness::RedirectHarness;

/// Size of a buffer in which the kernel holds about ten events, in bytes.
const SMALL: usize = 4096;
/// A number of events that exceeds a buffer of `net.core.rmem_max`, which is at most 4 MiB by
/// default, but not the agent's buffer.
const MANY: u32 = 15_000;

/// A pod sends from many MAC addresses. The bridge learns each of them, which causes events.
fn flood(harness: &RedirectHarness, pod: &Pod) -> anyhow::Result<()> {
    let port = pod.port.as_deref().unwrap();
    let mut commands = String::new();
    for number in 0..MANY {
        let [_, a, b, c] = number.to_be_bytes();
        let mac = format!("02:ff:00:{a:02x}:{b:02x}:{c:02x}");
        writeln!(commands, "fdb replace {mac} dev {port} master")?;
    }
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), commands)?;
    let batch = format!("bridge -batch {}", file.path().display());
    harness.lab.node().exec(&batch).map(|_| ())
}

/// A pod with its own interface, and one on a bridge.
struct Pods {
    routed: Pod,
    bridged: Pod,
}

impl Pods {
    fn new(harness: &RedirectHarness) -> anyhow::Result<Self> {
        let (routed, bridged) = (
            harness.pod()?,
            harness.lab.pod("10.2.0.5", PodLink::Bridge)?,
        );
        talk(&routed)?;
        talk(&bridged)?;
        Ok(Self { routed, bridged })
    }

    /// Asserts that both pods have their addresses, for a connection that is accepted from now on.
    fn settle(&self, harness: &RedirectHarness, fixture: &Fixture) -> anyhow::Result<()> {
        fixture.record(harness, &self.bridged, "bridged")?;
        for (uid, pod) in [("routed", &self.routed), ("bridged", &self.bridged)] {
            fixture.seen(pod_id(uid), &addresses(pod));
            // The setup of the harness causes events too.
            eventually(|| {
                let verdicts = fixture.verdicts(uid, pod);
                verdicts.is_ok_and(|verdicts| verdicts == [Verdict::Same; 2])
            });
        }
        Ok(())
    }

    fn verdicts(&self, fixture: &Fixture, accepted: Instant) -> anyhow::Result<[Verdict; 2]> {
        let check = |uid, pod| {
            let [addr, _] = addresses(pod);
            // `Fixture::check` uses the current time; this test passes the time of the accept.
            std::ops::Deref::deref(fixture).check(uid, addr, accepted)
        };
        Ok([
            check("routed", &self.routed)?,
            check("bridged", &self.bridged)?,
        ])
    }
}

#[test]
fn threat_03_a_connection_is_refused_for_good_once_events_were_lost() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::None)?;
    let pods = Pods::new(&harness)?;
    let fixture = open_with(&harness, None, SMALL)?;
    pods.settle(&harness, &fixture)?;
    let accepted = Instant::now();
    assert_eq!(pods.verdicts(&fixture, accepted)?, [Verdict::Same; 2]);
    let losses = fixture.losses();
    let (losses_before, generation) = (losses.get(), fixture.generation());

    // The kernel drops events, among them those about the takeover of the address and its end.
    let [addr, _] = addresses(&pods.bridged);
    let before = fixture.resolve(addr)?;
    flood(&harness, &pods.bridged)?;
    let mac = pods.bridged.mac("eth0")?;
    for now in ["02:00:00:00:00:66", &mac] {
        let neighbour = format!("ip neigh replace {addr} lladdr {now} dev cni0");
        harness.lab.node().exec(&neighbour)?;
    }
    assert_eq!(fixture.resolve(addr)?, before);
    let lost = [Verdict::Same, Verdict::EventsLost];
    assert_eq!(pods.verdicts(&fixture, accepted)?, lost);
    assert!(losses.get() > losses_before);
    assert_ne!(
        fixture.generation(),
        generation,
        "each connection is looked at again"
    );

    // New connections are served again; the connection from before the loss never is.
    eventually(|| {
        fixture
            .check("bridged", addr)
            .is_ok_and(|now| now == Verdict::Same)
    });
    assert_eq!(pods.verdicts(&fixture, accepted)?, lost);
    Ok(())
}

#[test]
fn a_burst_of_events_is_kept() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::None)?;
    let pods = Pods::new(&harness)?;
    let fixture = open_with(&harness, None, EVENT_BUFFER)?;
    pods.settle(&harness, &fixture)?;
    let accepted = Instant::now();
    assert_eq!(pods.verdicts(&fixture, accepted)?, [Verdict::Same; 2]);
    flood(&harness, &pods.bridged)?;
    assert_eq!(pods.verdicts(&fixture, accepted)?, [Verdict::Same; 2]);
    assert_eq!(fixture.losses().get(), 0);
    Ok(())
}

#[test]
fn an_interface_that_went_with_lost_events_is_not_remembered() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::None)?;
    let pods = Pods::new(&harness)?;
    let fixture = open_with(&harness, None, SMALL)?;
    pods.settle(&harness, &fixture)?;
    let addr: IpAddr = "10.9.0.5".parse()?;
    let make = |name: &str, kind: &str| {
        for command in [
            format!("ip link add {name} index 777 type {kind}"),
            format!("ip link set {name} up"),
            format!("ip route add {addr}/32 dev {name}"),
        ] {
            harness.lab.node().exec(&command)?;
        }
        anyhow::Ok(())
    };
    make("own0", "veth peer name own1")?;
    let found = fixture.resolve(addr)?.unwrap();
    assert_eq!((&*found.name, found.kind), ("own0", Kind::PointToPoint));
    flood(&harness, &pods.bridged)?;
    harness.lab.node().exec("ip link del own0")?;
    make("br0", "bridge")?;
    fixture.verdicts("bridged", &pods.bridged)?;
    let found = fixture.resolve(addr)?.unwrap();
    assert_eq!(&*found.name, "br0");
    assert!(matches!(found.kind, Kind::Bridge { .. }));
    Ok(())
}
