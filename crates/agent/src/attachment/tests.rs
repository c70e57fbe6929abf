//! Tests that need no particular network namespace. Those that need pods are in tests/netns.

use tokio_util::sync::CancellationToken;

use super::*;

fn open(unrecorded: Unrecorded, results_dir: Option<PathBuf>) -> Attachments {
    let options = AttachmentOptions {
        interface: None,
        results_dir,
        results_owner: rustix::process::geteuid().as_raw(),
        netns_dir: "/no-such-folder".into(),
        unrecorded,
        event_buffer: EVENT_BUFFER,
    };
    Attachments::open(options).unwrap()
}

fn pod(uid: &str) -> PodId {
    PodId {
        uid: uid.into(),
        namespace: "shop".into(),
        name: "web".into(),
    }
}

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

#[test]
fn each_pod_change_invalidates_earlier_checks() {
    let attachments = open(Unrecorded::Refuse, None);
    let mut before = attachments.generation();
    assert_ne!(before, 0);
    let mut changed = || {
        let now = attachments.generation();
        std::mem::replace(&mut before, now) != now
    };
    assert!(!changed());
    attachments.seen(pod("u1"), &[LOOPBACK]);
    assert!(changed());
    assert!(!attachments.read_records() && !changed());
    attachments.forget("u1");
    assert!(changed());
}

#[test]
fn unread_events_invalidate_earlier_checks() {
    let attachments = open(Unrecorded::Refuse, None);
    let before = attachments.generation();
    let [behind, recovered] = events::tests::behind_and_recovered();
    attachments.reached(&behind);
    let since = attachments.generation();
    assert_ne!(since, before);
    // A check in between was refused, unless it read all of them itself.
    attachments.reached(&recovered);
    assert_eq!(attachments.generation(), since);
}

#[test]
fn lost_events_are_counted() {
    let attachments = open(Unrecorded::Refuse, None);
    assert_eq!(attachments.losses().get(), 0);
    attachments.take_in(&Event::Lost);
    assert_eq!(attachments.losses().get(), 1);
}

#[tokio::test]
async fn a_request_that_waits_for_events_to_be_read_is_woken() {
    let attachments = open(Unrecorded::Refuse, None);
    lock(&attachments.events).fall_behind();
    attachments.catch_up().unwrap();
    let cancel = CancellationToken::new();
    let woken = AtomicBool::new(false);
    let wake = || {
        woken.store(true, Ordering::Relaxed);
        cancel.cancel();
    };
    let run = cancel.run_until_cancelled(attachments.run(wake));
    let deadline = Duration::from_secs(60);
    tokio::time::timeout(deadline, run).await.unwrap();
    assert!(woken.into_inner());
}

#[test]
fn an_address_of_this_host_is_no_pod_s() {
    let attachments = open(Unrecorded::Learn, None);
    attachments.seen(pod("u1"), &[LOOPBACK]);
    assert_eq!(attachments.resolve(LOOPBACK).unwrap(), None);
    let verdict = attachments.check("u1", LOOPBACK, Instant::now()).unwrap();
    assert_eq!(verdict, Verdict::Unknown);
}

#[test]
fn an_address_of_this_host_needs_no_record() {
    let attachments = open(Unrecorded::Refuse, None);
    attachments.seen(pod("u1"), &[LOOPBACK]);
    attachments.read_records();
    assert_eq!(attachments.concern(), None);
}

#[test]
fn addresses_without_a_record_are_reported() {
    for (unrecorded, dir, words) in [
        (
            Unrecorded::Refuse,
            Some("/results"),
            "in /results: they get no credentials",
        ),
        (Unrecorded::Refuse, None, "--cni-results-dir is empty"),
        (
            Unrecorded::Learn,
            Some("/results"),
            "--unrecorded-addresses=learn",
        ),
    ] {
        let attachments = open(unrecorded, dir.map(PathBuf::from));
        assert_eq!(attachments.concern(), None);
        attachments.missing.store(3, Ordering::Relaxed);
        let concern = attachments.concern().unwrap();
        assert!(
            concern.starts_with("3 addresses") && concern.contains(words),
            "{concern}"
        );
        attachments.missing.store(0, Ordering::Relaxed);
        attachments.forgeable.store(true, Ordering::Relaxed);
        let concern = attachments.concern().unwrap();
        assert!(concern.contains("a neighbor can take"), "{concern}");
    }
}

#[test]
fn warnings_of_one_kind_keep_a_pace() {
    let attachments = open(Unrecorded::Refuse, None);
    let mut warned = 0;
    for _ in 0..2 {
        attachments.warn(|| warned += 1);
    }
    assert_eq!(warned, 1);
    *lock(&attachments.warned) = Instant::now().checked_sub(WARN_INTERVAL);
    attachments.warn(|| warned += 1);
    assert_eq!(warned, 2);
}

#[test]
fn a_mac_address_is_shown_as_ip_shows_it() {
    assert_eq!(
        Mac([2, 0, 0xab, 0, 0, 0x66]).to_string(),
        "02:00:ab:00:00:66"
    );
}
