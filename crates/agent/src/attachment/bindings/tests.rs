use super::*;

const ADDR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 5));
const PODS: Mac = Mac([2, 0, 0, 0, 0, 5]);
const THIEFS: Mac = Mac([2, 0, 0, 0, 0, 66]);

fn on(ifindex: u32, kind: Kind) -> Attachment {
    let name = format!("if{ifindex}");
    Attachment {
        ifindex,
        name,
        kind,
    }
}

fn own(ifindex: u32) -> Attachment {
    on(ifindex, Kind::PointToPoint)
}

fn bridge(mac: Option<Mac>, port: Option<u32>) -> Attachment {
    on(3, Kind::Bridge { mac, port })
}

fn at_home() -> Attachment {
    bridge(Some(PODS), Some(7))
}

fn pod(uid: &str) -> Arc<PodId> {
    Arc::new(PodId {
        uid: uid.into(),
        namespace: "shop".into(),
        name: "web".into(),
    })
}

fn recorded() -> Arc<Recorded> {
    let file = r#"{"kind":"cniCacheV1","cniArgs":[["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web"]],
        "result":{"interfaces":[{"name":"eth0","sandbox":"cni-1"}],"ips":[{"address":"10.1.0.5/16"}]}}"#;
    Arc::new(super::super::cni_results::parse(file.as_bytes()).remove(0))
}

/// Returns pod `a` with an attachment from the routing table or from a record.
fn bound(home: Attachment) -> Bindings {
    let mut bindings = Bindings::default();
    bindings.claim(&pod("a"), &[ADDR]);
    match home.kind {
        Kind::PointToPoint => bindings.learn("a", ADDR, home),
        _ => assert!(bindings.record("a", ADDR, Some((home, recorded())))),
    }
    bindings
}

#[test]
fn a_place_is_a_pod_s_home_if_all_of_it_is() {
    let bindings = bound(at_home());
    let is_home =
        |pod_attachment: Option<Attachment>| bindings.is_home("a", ADDR, pod_attachment.as_ref());
    assert!(is_home(Some(at_home())));
    for other in [
        bridge(Some(THIEFS), Some(7)),
        bridge(Some(PODS), Some(8)),
        bridge(Some(PODS), None),
        bridge(None, None),
        own(3),
    ] {
        assert!(!is_home(Some(other.clone())), "{other:?}");
    }
    assert!(!is_home(None));
    assert!(!bindings.is_home("b", ADDR, Some(&at_home())));
    // The redirect rules drop packets from elsewhere.
    assert!(bound(own(5)).is_home("a", ADDR, None));
    assert!(!Bindings::default().is_home("a", ADDR, Some(&own(5))));
}

#[test]
fn addresses_keep_their_first_interface_until_a_new_pod_owns_them() {
    let now = Instant::now();
    let mut bindings = bound(own(5));
    assert_eq!(bindings.check("a", ADDR, &own(5), now), Verdict::Same);
    assert_eq!(bindings.check("b", ADDR, &own(5), now), Verdict::Unknown);
    assert_eq!(bindings.check("a", ADDR, &own(6), now), Verdict::Changed);
    bindings.claim(&pod("a"), &[ADDR]);
    bindings.learn("a", ADDR, own(6));
    let later = now + 2 * HOLD_DOWN;
    assert_eq!(bindings.check("a", ADDR, &own(6), later), Verdict::Changed);
    bindings.claim(&pod("b"), &[ADDR]);
    bindings.learn("b", ADDR, own(6));
    assert_eq!(bindings.check("b", ADDR, &own(6), later), Verdict::Same);
    assert_eq!(bindings.check("a", ADDR, &own(6), later), Verdict::Changed);
    bindings.forget("b");
    assert_eq!(bindings.check("b", ADDR, &own(6), later), Verdict::Unknown);
    bindings.forget("a");
    assert!(bindings.claims().is_empty());
}

#[test]
fn a_claim_that_goes_leaves_the_others_bound() {
    let now = Instant::now();
    for (home, gone, left) in [
        (own(5), "a", "b"),
        (own(5), "b", "a"),
        (at_home(), "a", "b"),
        (at_home(), "b", "a"),
    ] {
        let mut bindings = bound(home.clone());
        bindings.claim(&pod("b"), &[ADDR]);
        match home.kind {
            Kind::PointToPoint => bindings.learn("b", ADDR, home.clone()),
            _ => assert!(bindings.record("b", ADDR, Some((home.clone(), recorded())))),
        }
        assert_eq!(bindings.claims().len(), 2);
        bindings.forget(gone);
        let named: Vec<_> = bindings.claims();
        assert_eq!(named, [(pod(left), ADDR)]);
        assert_eq!(bindings.check(left, ADDR, &home, now), Verdict::Same);
        assert_eq!(bindings.check(gone, ADDR, &home, now), Verdict::Unknown);
    }
}

#[test]
fn removed_addresses_are_forgotten_and_others_stay() {
    let now = Instant::now();
    let second = IpAddr::from([10, 1, 0, 6]);
    let mut bindings = bound(own(5));
    bindings.claim(&pod("a"), &[ADDR, second]);
    assert!(bindings.is_bound("a", ADDR) && !bindings.is_bound("a", second));
    bindings.learn("a", second, own(5));
    bindings.claim(&pod("a"), &[second]);
    assert_eq!(bindings.check("a", ADDR, &own(5), now), Verdict::Unknown);
    assert_eq!(bindings.check("a", second, &own(5), now), Verdict::Same);
}

#[test]
fn unrecorded_shared_addresses_are_never_learned_from_traffic() {
    let now = Instant::now();
    for seen in [at_home(), on(3, Kind::Shared { mac: Some(PODS) })] {
        let mut bindings = Bindings::default();
        bindings.claim(&pod("a"), &[ADDR]);
        for _ in 0..2 {
            assert_eq!(bindings.check("a", ADDR, &seen, now), Verdict::Unrecorded);
        }
        assert!(!bindings.is_bound("a", ADDR) && !bindings.was_recorded("a", ADDR));
        // Learning remains available as an option.
        let mut learning = Bindings::learning();
        learning.claim(&pod("a"), &[ADDR]);
        assert_eq!(learning.check("a", ADDR, &seen, now), Verdict::Same);
        let stolen = on(
            3,
            Kind::Bridge {
                mac: Some(THIEFS),
                port: Some(8),
            },
        );
        assert_eq!(learning.check("a", ADDR, &stolen, now), Verdict::Changed);
        // A missing record does not remove the attachment, and a record takes precedence over it.
        assert!(!learning.record("a", ADDR, None));
        assert!(learning.is_bound("a", ADDR));
        assert!(learning.record("a", ADDR, Some((bridge(Some(PODS), Some(9)), recorded()))));
        assert!(learning.record("a", ADDR, None));
        assert!(!learning.is_bound("a", ADDR));
    }
}

#[test]
fn a_record_binds_replaces_and_takes_away() {
    let now = Instant::now();
    let mut bindings = bound(at_home());
    let record = recorded();
    let moved = bridge(Some(PODS), Some(9));
    assert!(bindings.was_recorded("a", ADDR) && !bindings.is_bound_by("a", ADDR, &record));
    assert_eq!(bindings.check("a", ADDR, &moved, now), Verdict::Changed);
    // The pod's sandbox was re-created: the hold-down of the old attachment is over.
    assert!(bindings.record("a", ADDR, Some((moved.clone(), record.clone()))));
    assert!(bindings.is_bound_by("a", ADDR, &record));
    assert!(!bindings.record("a", ADDR, Some((moved.clone(), record.clone()))));
    assert_eq!(bindings.check("a", ADDR, &moved, now), Verdict::Same);
    assert_eq!(bindings.check("a", ADDR, &at_home(), now), Verdict::Changed);
    assert!(bindings.record("a", ADDR, None));
    assert_eq!(bindings.check("a", ADDR, &moved, now), Verdict::Unrecorded);
    assert!(bindings.was_recorded("a", ADDR));
    assert!(!bindings.record("b", ADDR, Some((moved, record))));
}

#[test]
fn an_unrecorded_address_is_reported_once() {
    let mut bindings = bound(at_home());
    assert!(bindings.report("a", ADDR));
    assert!(!bindings.report("a", ADDR));
    assert!(!bindings.report("b", ADDR));
}

#[test]
fn a_neighbour_that_takes_turns_with_the_pod_never_wins() {
    let mut now = Instant::now();
    let mut bindings = bound(at_home());
    for stolen in [
        bridge(Some(THIEFS), Some(8)),
        bridge(Some(THIEFS), Some(7)),
        bridge(Some(PODS), Some(8)),
        on(3, Kind::Shared { mac: Some(PODS) }),
        on(4, at_home().kind),
    ] {
        assert_eq!(bindings.check("a", ADDR, &stolen, now), Verdict::Changed);
        now += HOLD_DOWN - Duration::from_nanos(1);
        assert_eq!(bindings.check("a", ADDR, &at_home(), now), Verdict::Changed);
        now += Duration::from_nanos(1);
        assert_eq!(bindings.check("a", ADDR, &at_home(), now), Verdict::Same);
    }
}

#[test]
fn responses_that_the_bridge_would_flood_are_refused() {
    let now = Instant::now();
    let mut bindings = bound(at_home());
    for vague in [bridge(Some(PODS), None), bridge(None, None)] {
        assert_eq!(bindings.check("a", ADDR, &vague, now), Verdict::Unknown);
    }
    assert_eq!(bindings.check("a", ADDR, &at_home(), now), Verdict::Same);
}

#[test]
fn a_pod_seen_before_its_route_is_bound_by_the_route() {
    let now = Instant::now();
    let mut bindings = bound(own(5));
    bindings.claim(&pod("b"), &[ADDR]);
    assert_eq!(bindings.on_event(&Event::LinkGone(5), now), [ADDR]);
    assert_eq!(bindings.check("a", ADDR, &own(5), now), Verdict::Changed);
    assert_eq!(bindings.check("b", ADDR, &own(6), now), Verdict::Same);
    bindings.learn("b", ADDR, own(7));
    assert_eq!(bindings.check("b", ADDR, &own(7), now), Verdict::Changed);
}

#[test]
fn only_contradicting_events_return_the_address() {
    let now = Instant::now();
    let elsewhere = IpAddr::from([10, 1, 0, 6]);
    let neighbour = |addr, ifindex, mac| Event::Neighbour { addr, ifindex, mac };
    let port = |mac, bridge, port| Event::Port { mac, bridge, port };
    let route = |addr, ifindex| Event::Route { addr, ifindex };
    for (home, harmless, notify_changes) in [
        (
            own(5),
            vec![
                Event::LinkGone(6),
                route(ADDR, 5),
                route(elsewhere, 6),
                neighbour(ADDR, 5, THIEFS),
            ],
            vec![Event::LinkGone(5), route(ADDR, 6)],
        ),
        (
            at_home(),
            vec![
                Event::LinkGone(8),
                neighbour(ADDR, 3, PODS),
                neighbour(ADDR, 4, THIEFS),
                neighbour(elsewhere, 3, THIEFS),
                port(PODS, 3, 7),
                port(PODS, 4, 8),
                port(THIEFS, 3, 8),
            ],
            vec![
                Event::LinkGone(3),
                Event::LinkGone(7),
                neighbour(ADDR, 3, THIEFS),
                port(PODS, 3, 8),
            ],
        ),
        (
            on(3, Kind::Shared { mac: Some(PODS) }),
            vec![neighbour(ADDR, 3, PODS), Event::Lost],
            vec![neighbour(ADDR, 3, THIEFS)],
        ),
    ] {
        let mut bindings = bound(home.clone());
        for event in &harmless {
            assert!(bindings.on_event(event, now).is_empty(), "{event:?}");
        }
        assert_eq!(bindings.check("a", ADDR, &home, now), Verdict::Same);
        for event in &notify_changes {
            let mut bindings = bound(home.clone());
            assert_eq!(bindings.on_event(event, now), [ADDR], "{event:?}");
            let verdict = bindings.check("a", ADDR, &home, now);
            assert_eq!(verdict, Verdict::Changed, "{event:?}");
        }
    }
}

#[test]
fn events_are_told_with_addresses_and_interfaces() {
    let addr = [10, 0, 0, 5].into();
    let mac = Mac([2, 0, 0, 0, 0, 0xaf]);
    assert_eq!(mac.to_string(), "02:00:00:00:00:af");
    for (event, told) in [
        (Event::LinkGone(7), "interface 7 is gone"),
        (
            Event::Route { addr, ifindex: 7 },
            "route of 10.0.0.5 by interface 7",
        ),
        (
            Event::Neighbour {
                addr,
                ifindex: 7,
                mac,
            },
            "neighbour 10.0.0.5 at 02:00:00:00:00:af on interface 7",
        ),
        (
            Event::Port {
                mac,
                bridge: 3,
                port: 7,
            },
            "02:00:00:00:00:af at port 7 of bridge 3",
        ),
        (Event::Lost, "events of the kernel were lost"),
    ] {
        assert_eq!(event.to_string(), told);
    }
}

#[test]
fn adopted_addresses_last_as_long_as_their_record() {
    let other = IpAddr::from([10, 1, 0, 6]);
    let adopted = || {
        let mut bindings = Bindings::default();
        bindings.claim(&pod("a"), &[other]);
        assert!(bindings.adopt((*pod("a")).clone(), ADDR));
        assert!(!bindings.adopt((*pod("a")).clone(), ADDR));
        bindings.learn("a", ADDR, own(3));
        bindings
    };
    let now = Instant::now();
    let same = |bindings: &mut Bindings| bindings.check("a", ADDR, &own(3), now) == Verdict::Same;
    let mut bindings = adopted();
    bindings.keep_adopted(|pod, addr| &*pod.uid == "a" && addr == ADDR);
    assert!(same(&mut bindings));
    bindings.keep_adopted(|_, _| false);
    assert!(!same(&mut bindings));
    assert_eq!(bindings.claims().len(), 1, "the reported address stays");
    // The API server reports the address, with its attachment known already, or another one.
    for (reported, stays) in [(ADDR, true), (other, false)] {
        let mut bindings = adopted();
        bindings.claim(&pod("a"), &[reported]);
        bindings.keep_adopted(|_, _| false);
        assert_eq!(same(&mut bindings), stays, "{reported}");
    }
}
