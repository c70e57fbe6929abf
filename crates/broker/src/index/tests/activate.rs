//! Streams that activate and end: their pods are decided in batches and delay nothing else.

use tokio::sync::watch;

use super::*;

fn name(number: usize) -> String {
    format!("uid-{number}")
}

/// Returns the number of pods in a subscription.
fn decided(subscription: &Subscription, pods: usize) -> usize {
    let known = |number: &usize| subscription.entry(&name(*number)).is_some();
    (0..pods).filter(known).count()
}

/// Runs an index with these updates and commands. Its other sources stay open and idle.
async fn run(
    index: Index,
    updates: mpsc::Receiver<Update>,
    commands: mpsc::UnboundedReceiver<StreamCommand>,
) {
    let (_reporter, reports) = mpsc::channel(1);
    let (_learner, aws_environment) = watch::channel(None);
    let (_changer, sessions) = mpsc::unbounded_channel();
    let sources = IndexSources {
        cluster: Sources::new(updates, reports, aws_environment),
        commands,
        sessions,
    };
    index.run(sources).await;
}

fn with_pods(mut fixture: Fixture, pods: usize) -> Fixture {
    for number in 0..pods {
        fixture.apply(pod(&name(number), "node-1"));
    }
    fixture
}

#[test]
fn a_stream_is_complete_once_all_pods_of_its_node_are_decided() {
    let mut fixture = with_pods(synced(), 300);
    let subscription = fixture.begins("node-1", None);
    assert_eq!(decided(&subscription, 300), 0);
    let mut portions = 0;
    while decided(&subscription, 300) < 300 {
        assert!(!subscription.is_complete());
        let (_, _, complete) = sent(&subscription);
        assert!(!complete, "after {} pods", decided(&subscription, 300));
        fixture.index.reconcile_batch(BATCH_SIZE);
        portions += 1;
        assert!(decided(&subscription, 300) <= portions * BATCH_SIZE);
    }
    assert!(subscription.is_complete());
    let (last, _, complete) = sent(&subscription);
    assert!(!last.is_empty() && complete);
    assert!(fixture.index.state.is_idle());
}

#[test]
fn a_new_stream_does_not_affect_an_existing_one() {
    let mut fixture = with_pods(synced(), 3);
    let first = fixture.serving("node-1", None);
    let before = first.entry("uid-0").unwrap().decided.load_full();
    let second = fixture.serving("node-1", None);
    assert!(second.is_complete());
    let after = first.entry("uid-0").unwrap().decided.load_full();
    assert!(Arc::ptr_eq(&before, &after), "decided again");
}

#[test]
fn changing_pods_do_not_delay_a_new_stream() {
    let mut fixture = with_pods(synced(), 200);
    let subscription = fixture.begins("node-1", None);
    fixture.index.reconcile_batch(BATCH_SIZE);
    assert!(!subscription.is_complete());
    fixture.apply(pod("new", "node-1"));
    assert_eq!(authorization(&subscription, "new"), "allowed");
    // Pods that are not decided yet are changed or deleted.
    for number in 0..200 {
        if subscription.expects(&name(number)) {
            assert!(!subscription.is_complete());
            let pod = pod(&name(number), "node-1");
            let change = match number % 3 {
                0 => Change::Delete(pod),
                1 => Change::Apply(Workload {
                    node: Some("node-2".into()),
                    ..pod
                }),
                _ => Change::Apply(Workload {
                    role_request: RoleRequest::default(),
                    ..pod
                }),
            };
            fixture.index.update(Update::Workloads(change));
        }
    }
    assert!(subscription.is_complete());
}

#[test]
fn early_decisions_are_repeated_before_a_stream_is_complete() {
    // The rules arrive last.
    let mut fixture = with_pods(empty(), 200);
    let pods = (0..200).map(|number| pod(&name(number), "node-1"));
    let all = Change::Snapshot(pods.collect());
    fixture.index.update(Update::Workloads(all));
    let subscription = fixture.serving("node-1", None);
    assert_eq!(authorization(&subscription, "uid-7"), "undecided");
    fixture.index.update(namespace(r#"["reader"]"#));
    fixture.set_aws_environment();
    assert!(fixture.readiness.is_ready() && !subscription.is_complete());
    assert!(!sent(&subscription).2);
    fixture.reconcile_all();
    assert!(sent(&subscription).2);
    assert!((0..200).all(|number| authorization(&subscription, &name(number)) == "allowed"));

    // The pods arrive last.
    let mut fixture = empty();
    fixture.allow(r#"["reader"]"#);
    fixture.set_aws_environment();
    let subscription = fixture.serving("node-1", None);
    let pods = (0..200).map(|number| pod(&name(number), "node-1"));
    let all = Change::Snapshot(pods.collect());
    fixture.index.update(Update::Workloads(all));
    assert!(!subscription.is_complete());
    fixture.reconcile_all();
    assert!(subscription.is_complete());
}

#[tokio::test]
async fn a_large_new_stream_does_not_delay_other_nodes() {
    const PODS: usize = 5000;
    let mut fixture = with_pods(synced(), PODS);
    fixture.apply(pod("other", "node-2"));
    let other = fixture.serving("node-2", None);
    assert_eq!(authorization(&other, "other"), "allowed");
    let (commands, ordered) = mpsc::unbounded_channel();
    let huge = subscription("node-1", None);
    commands.send(StreamCommand::Join(huge.clone())).unwrap();
    commands
        .send(StreamCommand::Activate(huge.clone()))
        .unwrap();
    let (updates, updated) = mpsc::channel(1);
    tokio::spawn(run(fixture.index, updated, ordered));
    while !huge.has_changes() {
        tokio::task::yield_now().await;
    }
    let denied = pod("other", "node-2");
    let denied = Workload {
        role_request: RoleRequest::default(),
        ..denied
    };
    let change = Update::Workloads(Change::Apply(denied));
    updates.try_send(change).unwrap();
    while authorization(&other, "other") != "no role" {
        tokio::task::yield_now().await;
    }
    assert!(!huge.is_complete());
    assert!(decided(&huge, PODS) < PODS);
    // The large node completes too.
    huge.completed().await;
    assert_eq!(decided(&huge, PODS), PODS);
}

#[tokio::test]
async fn streams_that_come_and_go_hold_up_neither_pods_nor_rules() {
    let mut fixture = synced();
    fixture.apply(pod("gone", "node-1"));
    fixture.apply(pod("denied", "node-1"));
    fixture.apply(pod("thiefs", "node-2"));
    let served = fixture.serving("node-1", None);
    assert_eq!(authorization(&served, "denied"), "allowed");
    let (commands, ordered) = mpsc::unbounded_channel();
    let thief = subscription("node-2", None);
    for _ in 0..10_000 {
        commands.send(StreamCommand::Join(thief.clone())).unwrap();
        commands
            .send(StreamCommand::Activate(thief.clone()))
            .unwrap();
        commands.send(StreamCommand::Leave(thief.clone())).unwrap();
    }
    let (updates, updated) = mpsc::channel(2);
    let gone = pod("gone", "node-1");
    let gone = Update::Workloads(Change::Delete(gone));
    updates.try_send(gone).unwrap();
    updates.try_send(namespace(r#"["writer"]"#)).unwrap();
    tokio::spawn(run(fixture.index, updated, ordered));
    // One turn of the index.
    tokio::task::yield_now().await;
    assert_eq!(authorization(&served, "gone"), "unknown");
    assert_eq!(authorization(&served, "denied"), "denied");
    // Most commands are still queued.
    assert!(Arc::strong_count(&thief) > 10_000);
}
