//! Tests of a server that checks the attachment of addresses, over real connections.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::registry::Registry;
use rolegate_authorizer::ledger::Ledger;
use rolegate_authorizer::pod::{Authorization, DecisionRecord, PodEntry};
use rolegate_authorizer::recorder::OutcomeRecorder;
use rolegate_core::test_util::pod;
use rolegate_core::workload::{Phase, Workload};
use rolegate_runtime::clock::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::address_verifier::AddressVerifier;
use crate::address_verifier::tests::StandIn;
use crate::attachment::Verdict;
use crate::decision_source::DecisionSource;
use crate::metrics::AgentMetrics;
use crate::pod_table::{Owner, PodTable};
use crate::token::KeyRing;

const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
/// The response to a pod that was identified but has no role.
const IDENTIFIED: &str = "this pod has no role";

struct Fixture {
    pod_table: Arc<PodTable>,
    attachments: Arc<StandIn>,
    address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

/// Starts a server for one pod, with attachments that return `verdict` and a request timeout of
/// `wait`.
async fn fixture(verdict: Verdict, wait: Duration) -> Fixture {
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let attachments = StandIn::saying(verdict);
    let pod_table = Arc::new(PodTable::default());
    let workload = Workload {
        namespace: "shop".into(),
        name: "web".into(),
        addresses: vec![POD],
        ..pod(None)
    };
    let decided = DecisionRecord {
        generation: 0,
        expires_at: None,
        authorization: Authorization::NoRole,
    };
    let entry = Arc::new(PodEntry::new(Arc::new(workload), decided));
    pod_table.publish(vec![(POD, Some(Owner::Pod(entry)))], Vec::new());
    pod_table.set_synced(true);
    let ring = KeyRing::generate(Clock::system().now()).unwrap();
    let parts = MetadataParts {
        credentials: CredentialSource {
            pod_table: pod_table.clone(),
            decisions: DecisionSource::Broker(Clock::system()),
            verifier: AddressVerifier::new(None, Some(attachments.clone())),
            max_staleness: Duration::from_secs(3600),
            outcomes: OutcomeRecorder::new(None, Ledger::default()),
            metrics: AgentMetrics::register(&mut Registry::default()),
            clock: Clock::system(),
            wait,
        },
        tokens: Arc::new(TokenKeys::new(ring)),
        imds: Imds::new("127.0.0.1:9").unwrap(),
        health: NodeHealth::new(None),
    };
    let options = MetadataOptions {
        imds_v2: ImdsV2::Optional,
        allow: AllowList::new(&[]).unwrap(),
        limits: LimitOptions::default(),
        header_time: Duration::from_secs(10),
    };
    let server = MetadataServer::new(options, parts);
    Fixture {
        pod_table,
        attachments,
        address,
        _task: AbortOnDropHandle::new(tokio::spawn(server.serve(listener, Drain::new()))),
    }
}

/// A connection of the pod.
struct Pod(TcpStream, SocketAddr);

impl Fixture {
    async fn connect(&self) -> Pod {
        Pod(
            TcpStream::connect(self.address).await.unwrap(),
            self.address,
        )
    }

    /// Waits for the next check of the attachment.
    async fn asked(&self, before: usize) {
        let asked = async {
            while self.attachments.asked() == before {
                tokio::task::yield_now().await;
            }
        };
        let deadline = Duration::from_secs(60);
        tokio::time::timeout(deadline, asked).await.unwrap();
    }
}

impl Pod {
    async fn send(&mut self) {
        let request = format!(
            "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: {}\r\n\r\n",
            self.1
        );
        self.0.write_all(request.as_bytes()).await.unwrap();
    }

    /// Reads the next response, up to its last line.
    async fn answer(&mut self) -> String {
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n") || answer.ends_with(b"\r\n") {
            let mut chunk = [0; 1024];
            let length = self.0.read(&mut chunk).await.unwrap();
            assert!(length > 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&chunk[..length]);
        }
        String::from_utf8(answer).unwrap()
    }

    async fn ask(&mut self) -> String {
        self.send().await;
        self.answer().await
    }
}

const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn only_attached_addresses_are_served() {
    for (verdict, why) in [
        (Verdict::Changed, "not attached to its pod"),
        (Verdict::Unrecorded, "has not recorded"),
        (Verdict::Unknown, "cannot locate it"),
    ] {
        let fixture = fixture(verdict, SHORT).await;
        let answer = fixture.connect().await.ask().await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        assert!(answer.contains(why), "{answer}");
    }
    let fixture = fixture(Verdict::Same, SHORT).await;
    fixture.attachments.say(None);
    let answer = fixture.connect().await.ask().await;
    assert!(
        answer.contains("cannot locate"),
        "an error of the kernel: {answer}"
    );
    fixture.attachments.say(Some(Verdict::Same));
    let answer = fixture.connect().await.ask().await;
    assert!(answer.contains(IDENTIFIED), "{answer}");
}

#[tokio::test]
async fn open_connections_are_refused_once_the_address_has_moved() {
    let fixture = fixture(Verdict::Same, SHORT).await;
    let mut pod = fixture.connect().await;
    for _ in 0..2 {
        let answer = pod.ask().await;
        assert!(answer.contains(IDENTIFIED), "{answer}");
    }
    assert_eq!(
        fixture.attachments.asked(),
        1,
        "asked once for the connection"
    );
    fixture.attachments.say(Some(Verdict::Changed));
    let answer = pod.ask().await;
    assert!(answer.contains("is not attached to its pod"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn connections_opened_from_elsewhere_stay_refused() {
    let fixture = fixture(Verdict::Changed, SHORT).await;
    let mut thief = fixture.connect().await;
    fixture.asked(0).await;
    fixture.attachments.say(Some(Verdict::Same));
    let answer = thief.ask().await;
    assert!(answer.contains("is not attached to its pod"), "{answer}");
    let answer = fixture.connect().await.ask().await;
    assert!(answer.contains(IDENTIFIED), "{answer}");
}

#[tokio::test]
async fn attachment_counts_from_the_opening_of_the_connection() {
    let fixture = fixture(Verdict::Same, SHORT).await;
    fixture.attachments.elsewhere.store(true, Ordering::Relaxed);
    // Its pod is unknown yet, so only this check shows that a neighbor opened it.
    let owner = fixture.pod_table.owner(POD);
    fixture.pod_table.publish(vec![(POD, None)], Vec::new());
    let mut thief = fixture.connect().await;
    let answer = thief.ask().await;
    assert!(answer.contains("no pod on this node"), "{answer}");
    fixture
        .attachments
        .elsewhere
        .store(false, Ordering::Relaxed);
    fixture.pod_table.publish(vec![(POD, owner)], Vec::new());
    let answer = thief.ask().await;
    assert!(answer.contains("is not attached to its pod"), "{answer}");
    let answer = fixture.connect().await.ask().await;
    assert!(answer.contains(IDENTIFIED), "{answer}");
}

#[tokio::test]
async fn connections_with_lost_events_are_closed() {
    let fixture = fixture(Verdict::Same, LONG).await;
    let mut pod = fixture.connect().await;
    assert!(pod.ask().await.contains(IDENTIFIED));
    fixture.attachments.say(Some(Verdict::EventsLost));
    // At once, since waiting would change nothing.
    let answer = pod.ask().await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("open a new one"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_request_waits_for_its_pod_s_record() {
    let fixture = fixture(Verdict::Unrecorded, LONG).await;
    let mut pod = fixture.connect().await;
    pod.send().await;
    // When it was opened, and at the request, before and after it began to wait.
    fixture.asked(0).await;
    fixture.asked(1).await;
    fixture.asked(2).await;
    fixture.attachments.say(Some(Verdict::Same));
    fixture.pod_table.touch();
    let answer = pod.answer().await;
    assert!(answer.contains(IDENTIFIED), "{answer}");
}

#[tokio::test]
async fn a_recorded_pod_is_served_before_its_address_is_reported() {
    let fixture = fixture(Verdict::Same, SHORT).await;
    let Some(Owner::Pod(reported)) = fixture.pod_table.owner(POD) else {
        panic!("no pod");
    };
    let entry = |change: &dyn Fn(&mut Workload)| {
        let mut workload = (*reported.workload).clone();
        workload.addresses.clear();
        change(&mut workload);
        let decided = DecisionRecord {
            generation: 0,
            expires_at: None,
            authorization: Authorization::NoRole,
        };
        Some(Arc::new(PodEntry::new(Arc::new(workload), decided)))
    };
    let uid = &reported.workload.uid;
    let publish = |entry| {
        let pods = vec![(uid.clone(), entry)];
        fixture.pod_table.publish(vec![(POD, None)], pods);
    };
    let unknown = "no pod on this node";
    let expect = async |expected: &str| {
        let answer = fixture.connect().await.ask().await;
        assert!(answer.contains(expected), "{answer}");
    };
    publish(entry(&|_| {}));
    expect(unknown).await;
    *fixture.attachments.recorded.lock() = Some(uid.clone());
    expect(IDENTIFIED).await;
    // Pods to which no address belongs, whatever the records say.
    publish(entry(&|pod| pod.mirror = true));
    expect(unknown).await;
    publish(entry(&|pod| pod.host_network = true));
    expect(unknown).await;
    publish(entry(&|pod| pod.phase = Phase::Succeeded));
    expect(unknown).await;
    // An instance that the API server does not know.
    publish(None);
    expect(unknown).await;
    publish(entry(&|_| {}));
    fixture.attachments.elsewhere.store(true, Ordering::Relaxed);
    expect(unknown).await;
    fixture
        .attachments
        .elsewhere
        .store(false, Ordering::Relaxed);
    fixture.attachments.say(Some(Verdict::Changed));
    expect("not attached to its pod").await;
    // Addresses that the API server reports take precedence.
    fixture.attachments.say(Some(Verdict::Same));
    let disputed = vec![(POD, Some(Owner::Disputed))];
    fixture.pod_table.publish(disputed, Vec::new());
    expect("several live pods").await;
}
