//! Streams that begin and end: the pods of their nodes are decided in portions, and hold up nothing else.

use super::*;

fn name(number: usize) -> String {
    format!("uid-{number}")
}

/// The number of pods that a feed has.
fn decided(feed: &Feed, pods: usize) -> usize {
    let known = |number: &usize| feed.resident(&name(*number)).is_some();
    (0..pods).filter(known).count()
}

/// Runs a desk with these updates and orders; its other sources stay open and say nothing.
async fn run(desk: Desk, updates: mpsc::Receiver<Update>, orders: mpsc::UnboundedReceiver<Order>) {
    let (_reporter, reports) = mpsc::channel(1);
    let (_learner, facts) = watch::channel(None);
    let (_changer, sessions) = mpsc::unbounded_channel();
    let sources = Sources {
        updates,
        reports,
        facts,
        orders,
        sessions,
    };
    desk.run(sources).await;
}

fn with_pods(mut bench: Bench, pods: usize) -> Bench {
    for number in 0..pods {
        bench.apply(pod(&name(number), "node-1"));
    }
    bench
}

#[test]
fn a_stream_is_complete_once_all_pods_of_its_node_are_decided() {
    let mut bench = with_pods(settled(), 300);
    let feed = bench.begins("node-1", None);
    assert_eq!(decided(&feed, 300), 0);
    let mut portions = 0;
    while decided(&feed, 300) < 300 {
        assert!(!feed.is_complete());
        let (_, _, complete) = sent(&feed);
        assert!(!complete, "after {} pods", decided(&feed, 300));
        bench.desk.catch_up(PORTION);
        portions += 1;
        assert!(decided(&feed, 300) <= portions * PORTION);
    }
    assert!(feed.is_complete());
    let (last, _, complete) = sent(&feed);
    assert!(!last.is_empty() && complete);
    assert!(bench.desk.pending.is_empty());
}

#[test]
fn a_stream_that_begins_beside_another_costs_the_other_nothing() {
    let mut bench = with_pods(settled(), 3);
    let first = bench.serving("node-1", None);
    let before = first.resident("uid-0").unwrap().decided.load_full();
    let second = bench.serving("node-1", None);
    assert!(second.is_complete());
    let after = first.resident("uid-0").unwrap().decided.load_full();
    assert!(Arc::ptr_eq(&before, &after), "decided again");
}

#[test]
fn pods_that_come_and_go_while_a_stream_begins_hold_it_up_no_longer_than_others() {
    let mut bench = with_pods(settled(), 200);
    let feed = bench.begins("node-1", None);
    bench.desk.catch_up(PORTION);
    assert!(!feed.is_complete());
    bench.apply(pod("new", "node-1"));
    assert_eq!(standing(&feed, "new"), "allowed");
    // Those that are not decided yet are changed, or go.
    for number in 0..200 {
        if feed.expects(&name(number)) {
            assert!(!feed.is_complete());
            let pod = pod(&name(number), "node-1");
            let change = match number % 3 {
                0 => Change::Delete(pod),
                1 => Change::Apply(Workload {
                    node: Some("node-2".into()),
                    ..pod
                }),
                _ => Change::Apply(Workload {
                    wish: Wish::default(),
                    ..pod
                }),
            };
            bench.desk.update(Update::Workloads(change));
        }
    }
    assert!(feed.is_complete());
}

#[test]
fn what_was_decided_before_all_was_known_is_decided_again_before_a_stream_is_complete() {
    // The rules are known last.
    let mut bench = with_pods(empty(), 200);
    let pods = (0..200).map(|number| pod(&name(number), "node-1"));
    let all = Change::Snapshot(pods.collect());
    bench.desk.update(Update::Workloads(all));
    let feed = bench.serving("node-1", None);
    assert_eq!(standing(&feed, "uid-7"), "undecided");
    bench.desk.update(namespace(r#"["reader"]"#));
    bench.learn();
    assert!(bench.readiness.is_ready() && !feed.is_complete());
    assert!(!sent(&feed).2);
    bench.catch_up_with_all();
    assert!(sent(&feed).2);
    assert!((0..200).all(|number| standing(&feed, &name(number)) == "allowed"));

    // The pods are.
    let mut bench = empty();
    bench.allow(r#"["reader"]"#);
    bench.learn();
    let feed = bench.serving("node-1", None);
    let pods = (0..200).map(|number| pod(&name(number), "node-1"));
    let all = Change::Snapshot(pods.collect());
    bench.desk.update(Update::Workloads(all));
    assert!(!feed.is_complete());
    bench.catch_up_with_all();
    assert!(feed.is_complete());
}

#[tokio::test]
async fn pods_of_other_nodes_get_their_change_while_a_stream_of_very_many_pods_begins() {
    const PODS: usize = 5000;
    let mut bench = with_pods(settled(), PODS);
    bench.apply(pod("other", "node-2"));
    let other = bench.serving("node-2", None);
    assert_eq!(standing(&other, "other"), "allowed");
    let (orders, ordered) = mpsc::unbounded_channel();
    let huge = feed("node-1", None);
    orders.send(Order::Join(huge.clone())).unwrap();
    orders.send(Order::Begin(huge.clone())).unwrap();
    let (updates, updated) = mpsc::channel(1);
    tokio::spawn(run(bench.desk, updated, ordered));
    while !huge.has_news() {
        tokio::task::yield_now().await;
    }
    let denied = pod("other", "node-2");
    let denied = Workload {
        wish: Wish::default(),
        ..denied
    };
    let change = Update::Workloads(Change::Apply(denied));
    updates.try_send(change).unwrap();
    while standing(&other, "other") != "no role" {
        tokio::task::yield_now().await;
    }
    assert!(!huge.is_complete());
    assert!(decided(&huge, PODS) < PODS);
    // It gets there all the same.
    huge.completed().await;
    assert_eq!(decided(&huge, PODS), PODS);
}

#[tokio::test]
async fn streams_that_come_and_go_hold_up_neither_pods_nor_rules() {
    let mut bench = settled();
    bench.apply(pod("gone", "node-1"));
    bench.apply(pod("denied", "node-1"));
    bench.apply(pod("thiefs", "node-2"));
    let served = bench.serving("node-1", None);
    assert_eq!(standing(&served, "denied"), "allowed");
    let (orders, ordered) = mpsc::unbounded_channel();
    let thief = feed("node-2", None);
    for _ in 0..10_000 {
        orders.send(Order::Join(thief.clone())).unwrap();
        orders.send(Order::Begin(thief.clone())).unwrap();
        orders.send(Order::Leave(thief.clone())).unwrap();
    }
    let (updates, updated) = mpsc::channel(2);
    let gone = pod("gone", "node-1");
    let gone = Update::Workloads(Change::Delete(gone));
    updates.try_send(gone).unwrap();
    updates.try_send(namespace(r#"["writer"]"#)).unwrap();
    tokio::spawn(run(bench.desk, updated, ordered));
    // One turn of the desk.
    tokio::task::yield_now().await;
    assert_eq!(standing(&served, "gone"), "unknown");
    assert_eq!(standing(&served, "denied"), "denied");
    // It has not got to all that streams ask.
    assert!(Arc::strong_count(&thief) > 10_000);
}
