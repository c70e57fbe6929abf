use std::time::Duration;

use futures::FutureExt;

use super::*;

type Permit = Admitted<&'static str, ()>;

fn shares(total: usize, each: usize, unknown_peers: usize) -> Shares<&'static str, ()> {
    Shares::new(ShareLimits {
        total,
        each,
        known: total,
        unknown_peers,
    })
}

/// Returns a table of 20 connections, 16 for known holders and 4 for unknown peers.
fn classes() -> Shares<&'static str, ()> {
    Shares::new(ShareLimits {
        total: 20,
        each: 16,
        known: 16,
        unknown_peers: 4,
    })
}

fn known(key: &'static str) -> Holder<&'static str> {
    Holder { key, known: true }
}

fn unknown_peer(key: &'static str) -> Holder<&'static str> {
    Holder { key, known: false }
}

/// Returns the slot of a connection that has been idle since the second `since`.
fn idle(shares: &Shares<&'static str, ()>, holder: Holder<&'static str>, since: u64) -> Permit {
    let place = shares.admit(holder);
    let since = shares.0.origin + Duration::from_secs(since);
    place.slot.end(since);
    place
}

fn evicted(place: &mut Permit) -> Option<Evicted> {
    place.eviction.next().now_or_never()
}

#[test]
fn the_holder_with_the_most_connections_makes_room() {
    let shares = shares(8, 8, 8);
    let mut greedy: Vec<_> = (0..6).map(|n| idle(&shares, known("greedy"), n)).collect();
    let mut modest: Vec<_> = (0..2).map(|n| idle(&shares, known("modest"), n)).collect();
    let neighbour = shares.admit(known("neighbour"));
    assert_eq!(neighbour.evicted, Some(Limit::Known));
    assert_eq!(shares.open(), 8);
    // The longest idle connection of the holder that has the most.
    let ended: Vec<_> = greedy.iter_mut().map(evicted).collect();
    assert_eq!(ended.iter().flatten().count(), 1);
    assert_eq!(ended[0], Some(Evicted::Finish));
    assert!(modest.iter_mut().all(|place| evicted(place).is_none()));
    // Opening another one gains nothing.
    let again = shares.admit(known("greedy"));
    assert_eq!(again.evicted, Some(Limit::Known));
    assert_eq!(evicted(&mut greedy[1]), Some(Evicted::Finish));
    assert!(modest.iter_mut().all(|place| evicted(place).is_none()));
}

#[test]
fn more_holders_than_places_take_turns() {
    let shares = shares(4, 4, 4);
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    let mut places: Vec<_> = names
        .into_iter()
        .enumerate()
        .map(|(n, name)| idle(&shares, known(name), n as u64))
        .collect();
    assert_eq!(shares.open(), 4);
    let ended: Vec<_> = places
        .iter_mut()
        .map(|place| evicted(place).is_some())
        .collect();
    assert_eq!(ended.iter().filter(|ended| **ended).count(), 3);
    assert!(!ended[6], "the newest was admitted");
}

#[test]
fn a_holder_at_its_limit_loses_its_longest_idle_connection() {
    let shares = shares(100, 3, 100);
    let first = idle(&shares, known("a"), 5);
    let mut second = idle(&shares, known("a"), 2);
    let busy = shares.admit(known("a"));
    busy.slot.begin(shares.0.origin);
    let fourth = shares.admit(known("a"));
    assert_eq!(fourth.evicted, Some(Limit::Each));
    assert_eq!(evicted(&mut second), Some(Evicted::Finish));
    // A request, or a connection that has not had one yet, continues while there are idle ones.
    let mut all = [first, busy, fourth];
    let fifth = shares.admit(known("a"));
    assert_eq!(
        all.each_mut().map(evicted),
        [Some(Evicted::Finish), None, None]
    );
    let sixth = shares.admit(known("a"));
    assert_eq!(evicted(&mut all[1]), Some(Evicted::Finish));
    drop((fifth, sixth));
}

#[test]
fn unknown_peers_count_as_one_holder() {
    let shares = shares(8, 8, 4);
    let names = ["s1", "s2", "s3", "s4"];
    let mut unknown_peers: Vec<_> = names
        .map(|name| idle(&shares, unknown_peer(name), 1))
        .into();
    // The limit of unknown peers is reached: one of them is closed.
    let fifth = shares.admit(unknown_peer("s5"));
    assert_eq!(fifth.evicted, Some(Limit::UnknownPeers));
    unknown_peers.push(fifth);
    let gone = |places: &mut Vec<Permit>| {
        let before = places.len();
        places.retain_mut(|place| evicted(place).is_none());
        before - places.len()
    };
    assert_eq!(gone(&mut unknown_peers), 1);
    // An address that opens many loses its own.
    let more: Vec<_> = (0..3).map(|_| shares.admit(unknown_peer("s5"))).collect();
    unknown_peers.extend(more);
    assert_eq!(gone(&mut unknown_peers), 3);
    assert!(
        unknown_peers
            .iter()
            .filter(|place| place.slot.holder() == &"s5")
            .count()
            <= 2
    );
    // Known holders evict them once a holder has as few.
    let mut pods: Vec<_> = (0..4).map(|n| idle(&shares, known("a"), n)).collect();
    let others = [idle(&shares, known("b"), 1), idle(&shares, known("b"), 1)];
    assert_eq!(gone(&mut unknown_peers) + gone(&mut pods), 2);
    assert!(pods.len() >= 3 && !unknown_peers.is_empty());
    drop(others);
}

#[test]
fn separate_limits_keep_classes_from_evicting_each_other() {
    let shares = classes();
    let mut known_ones: Vec<_> = (0..16).map(|n| idle(&shares, known("a"), n)).collect();
    let mut unknown_peers: Vec<_> = ["s1", "s2", "s3", "s4", "s5", "s6"]
        .into_iter()
        .enumerate()
        .map(|(n, name)| idle(&shares, unknown_peer(name), 10 - n as u64))
        .collect();
    assert!(known_ones.iter_mut().all(|place| evicted(place).is_none()));
    // The longest idle ones of all unknown peers, and no more than needed.
    let ended: Vec<_> = unknown_peers
        .iter_mut()
        .map(|it| evicted(it).is_some())
        .collect();
    assert_eq!(ended, [false, false, false, true, true, false]);
    let own = shares.admit(known("b"));
    assert_eq!(own.evicted, Some(Limit::Known));
    assert_eq!(evicted(&mut known_ones[0]), Some(Evicted::Finish));
    assert_eq!(shares.open(), 20);
}

#[test]
fn an_unknown_peer_evicts_only_its_own_connections() {
    let shares = Shares::<_, ()>::new(ShareLimits {
        total: 100,
        each: 100,
        known: 84,
        unknown_peers: 16,
    });
    let mut other = idle(&shares, unknown_peer("other"), 0);
    let mut own: Vec<_> = (1..10)
        .map(|n| idle(&shares, unknown_peer("s"), n))
        .collect();
    let ended: Vec<_> = own.iter_mut().map(|it| evicted(it).is_some()).collect();
    // An eighth of the limit of unknown peers.
    assert_eq!(ended, [vec![true; 7], vec![false; 2]].concat());
    assert_eq!(evicted(&mut other), None);
}

#[test]
fn a_holder_that_becomes_known_takes_its_connections_along() {
    let shares = classes();
    let mut own = idle(&shares, unknown_peer("new"), 0);
    let mut others: Vec<_> = (0..16).map(|n| idle(&shares, known("a"), n)).collect();
    shares.classify(&known("new"));
    // The holder with the most is evicted from.
    assert_eq!(evicted(&mut others[0]), Some(Evicted::Finish));
    let names = ["s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8"];
    let unknown_peers = names.map(|name| shares.admit(unknown_peer(name)));
    assert_eq!(evicted(&mut own), None);
    assert_eq!(shares.0.lock().unknown_peers, 4);
    // Back again, where it is the first to go.
    shares.classify(&unknown_peer("new"));
    assert_eq!(evicted(&mut own), Some(Evicted::Finish));
    assert_eq!(shares.0.lock().unknown_peers, 4);
    // A holder without connections has no class.
    shares.classify(&known("stranger"));
    drop((own, others, unknown_peers));
    assert!(shares.0.lock().holders.is_empty());
}

#[test]
fn finishing_connections_are_bounded() {
    let shares = shares(16, 16, 16);
    let busy: Vec<_> = (0..16).map(|_| shares.admit(known("a"))).collect();
    for place in &busy {
        place.slot.begin(shares.0.origin);
    }
    let mut busy = busy;
    let newcomers: Vec<_> = (0..5).map(|_| shares.admit(known("b"))).collect();
    assert_eq!(shares.open(), 16);
    let ended: Vec<_> = busy
        .iter_mut()
        .map(|place| {
            let first = evicted(place);
            (first, first.and_then(|_| evicted(place)))
        })
        .collect();
    let cut = (Some(Evicted::Finish), Some(Evicted::Cut));
    assert_eq!(ended.iter().filter(|(first, _)| first.is_some()).count(), 5);
    // Two may finish, an eighth.
    assert_eq!(ended.iter().filter(|ended| **ended == cut).count(), 3);
    assert_eq!(shares.most(), 19);
    drop((busy, newcomers));
    assert!(shares.0.lock().finishing.is_empty());
}

#[test]
fn holders_near_a_limit_should_close() {
    let one = shares(1000, 8, 1000);
    let places: Vec<_> = (0..8).map(|_| one.admit(known("a"))).collect();
    assert!(places[0].slot.should_close());
    let other = one.admit(known("b"));
    assert!(!other.slot.should_close());
    let mut places = places;
    places.truncate(6);
    assert!(!places[0].slot.should_close());

    let all = shares(16, 16, 16);
    let many: Vec<_> = (0..9).map(|_| all.admit(known("a"))).collect();
    let few: Vec<_> = (0..4).map(|_| all.admit(known("b"))).collect();
    assert!(!many[0].slot.should_close());
    let last = all.admit(known("c"));
    // Nearly full, and more than a third.
    assert!(many[0].slot.should_close());
    assert!(!few[0].slot.should_close() && !last.slot.should_close());
}

#[test]
fn the_table_is_as_large_as_what_is_open() {
    let shares = shares(32, 8, 8);
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut held: Vec<Permit> = Vec::new();
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    };
    for _ in 0..20_000 {
        match random(4) {
            3 => shares.classify(&Holder {
                key: names[random(names.len())],
                known: random(2) == 0,
            }),
            0 if !held.is_empty() => drop(held.swap_remove(random(held.len()))),
            1 if !held.is_empty() => held[random(held.len())].slot.end(Instant::now()),
            _ => {
                let key = names[random(names.len())];
                let known = random(8) > 0 && key < "e";
                held.push(shares.admit(Holder { key, known }));
                // The server closes evicted connections, sooner or later.
                if random(2) == 0 {
                    held.retain_mut(|place| evicted(place).is_none());
                }
            }
        }
        let table = shares.0.lock();
        let open: usize = table
            .holders
            .values()
            .map(|held| held.connections.len())
            .sum();
        let of_strangers = table.holders.values().filter(|held| !held.known);
        let of_strangers: usize = of_strangers.map(|held| held.connections.len()).sum();
        assert_eq!((table.open, table.unknown_peers), (open, of_strangers));
        assert!(open <= 32 && of_strangers <= 8 && table.finishing.len() <= 4);
        let counts = table.holders.values().map(|held| {
            let count = held.shared.count.load(Relaxed);
            assert_eq!(count, held.connections.len());
            count
        });
        assert!(
            counts.min().is_none_or(|least| least > 0),
            "an empty holder is kept"
        );
    }
    held.clear();
    let table = shares.0.lock();
    assert!(table.holders.is_empty() && table.finishing.is_empty());
    assert_eq!((table.open, table.unknown_peers), (0, 0));
}

#[test]
fn a_stamp_is_milliseconds_with_room_for_whether_a_request_is_open() {
    let shares = shares(4, 2, 2);
    let at = |millis| {
        shares
            .0
            .stamp(shares.0.origin + Duration::from_millis(millis))
    };
    assert_eq!([at(0), at(1), at(999), at(2501)], [0, 2, 1998, 5002]);
}
