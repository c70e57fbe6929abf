//! A door that asks where an address is, over real connections.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::registry::Registry;
use rolegate_core::key_values::KeyValues;
use rolegate_core::workload::{Phase, Wish, Workload};
use rolegate_standing::ledger::Ledger;
use rolegate_standing::resident::{Decided, Resident, Standing};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::attachment::Verdict;
use crate::guard::tests::StandIn;
use crate::picture::Owner;
use crate::token::KeyRing;

const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
/// The answer to a pod that was identified but has no role.
const IDENTIFIED: &str = "this pod has no role";

struct Stage {
    picture: Arc<Picture>,
    places: Arc<StandIn>,
    address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

/// A door for one pod, with places that say `verdict`, where a request waits for `wait`.
async fn stage(verdict: Verdict, wait: Duration) -> Stage {
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let places = StandIn::saying(verdict);
    let picture = Arc::new(Picture::default());
    let workload = Workload {
        namespace: "shop".into(),
        name: "web".into(),
        uid: "u1".into(),
        node: None,
        service_account: "default".into(),
        addresses: vec![POD],
        phase: Phase::Running,
        host_network: false,
        mirror: false,
        wish: Wish::default(),
        labels: KeyValues::default(),
        annotations: KeyValues::default(),
    };
    let decided = Decided {
        generation: 0,
        until: None,
        standing: Standing::NoRole,
    };
    let resident = Arc::new(Resident::new(Arc::new(workload), decided));
    picture.publish(vec![(POD, Some(Owner::Pod(resident)))]);
    picture.settle(true);
    let ring = KeyRing::generate(Clock::system().now()).unwrap();
    let parts = DoorParts {
        picture: picture.clone(),
        judge: Judge::Broker(Clock::system()),
        guard: Guard::new(None, Some(places.clone())),
        tokens: Arc::new(TokenKeys::new(ring)),
        imds: Imds::new("127.0.0.1:9").unwrap(),
        clock: Clock::system(),
        metrics: AgentMetrics::register(&mut Registry::default()),
        tell: Tell::new(None, Ledger::default()),
        health: NodeHealth::new(None),
    };
    let options = DoorOptions {
        imds_v2: ImdsV2::Optional,
        allow: AllowList::new(&[]).unwrap(),
        wait,
        max_picture_age: Duration::from_secs(3600),
        limits: LimitOptions::default(),
        header_time: Duration::from_secs(10),
    };
    let door = Door::new(options, parts);
    Stage {
        picture,
        places,
        address,
        _task: AbortOnDropHandle::new(tokio::spawn(door.serve(listener, Drain::new()))),
    }
}

/// One connection of the pod.
struct Pod(TcpStream, SocketAddr);

impl Stage {
    async fn connect(&self) -> Pod {
        Pod(
            TcpStream::connect(self.address).await.unwrap(),
            self.address,
        )
    }

    /// Returns once the places were asked again.
    async fn asked(&self, before: usize) {
        let asked = async {
            while self.places.asked() == before {
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

    /// The next answer, up to its last line.
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
async fn a_door_answers_only_where_the_pod_s_address_is_at_home() {
    for (verdict, why) in [
        (Verdict::Changed, "elsewhere than its pod"),
        (Verdict::Unrecorded, "has not recorded"),
        (Verdict::Unknown, "does not know where it is"),
    ] {
        let stage = stage(verdict, SHORT).await;
        let answer = stage.connect().await.ask().await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        assert!(answer.contains(why), "{answer}");
    }
    let stage = stage(Verdict::Same, SHORT).await;
    stage.places.say(None);
    let answer = stage.connect().await.ask().await;
    assert!(
        answer.contains("does not know"),
        "an error of the kernel: {answer}"
    );
    stage.places.say(Some(Verdict::Same));
    let answer = stage.connect().await.ask().await;
    assert!(answer.contains(IDENTIFIED), "{answer}");
}

#[tokio::test]
async fn a_door_refuses_on_an_open_connection_once_its_address_has_moved() {
    let stage = stage(Verdict::Same, SHORT).await;
    let mut pod = stage.connect().await;
    for _ in 0..2 {
        let answer = pod.ask().await;
        assert!(answer.contains(IDENTIFIED), "{answer}");
    }
    assert_eq!(stage.places.asked(), 1, "asked once for the connection");
    stage.places.say(Some(Verdict::Changed));
    let answer = pod.ask().await;
    assert!(answer.contains("elsewhere than its pod"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_connection_opened_while_its_address_was_elsewhere_is_of_no_use_later() {
    let stage = stage(Verdict::Changed, SHORT).await;
    let mut thief = stage.connect().await;
    stage.asked(0).await;
    stage.places.say(Some(Verdict::Same));
    let answer = thief.ask().await;
    assert!(answer.contains("elsewhere than its pod"), "{answer}");
    let answer = stage.connect().await.ask().await;
    assert!(answer.contains(IDENTIFIED), "{answer}");
}

#[tokio::test]
async fn the_place_of_an_address_counts_from_when_the_connection_was_opened() {
    let stage = stage(Verdict::Same, SHORT).await;
    stage.places.elsewhere.store(true, Ordering::Relaxed);
    // Its pod is not known yet, so nothing else tells that a neighbour opened it.
    let owner = stage.picture.owner(POD);
    stage.picture.publish(vec![(POD, None)]);
    let mut thief = stage.connect().await;
    let answer = thief.ask().await;
    assert!(answer.contains("no pod of this node"), "{answer}");
    stage.places.elsewhere.store(false, Ordering::Relaxed);
    stage.picture.publish(vec![(POD, owner)]);
    let answer = thief.ask().await;
    assert!(answer.contains("elsewhere than its pod"), "{answer}");
    let answer = stage.connect().await.ask().await;
    assert!(answer.contains(IDENTIFIED), "{answer}");
}

#[tokio::test]
async fn a_door_closes_a_connection_whose_events_were_lost() {
    let stage = stage(Verdict::Same, LONG).await;
    let mut pod = stage.connect().await;
    assert!(pod.ask().await.contains(IDENTIFIED));
    stage.places.say(Some(Verdict::EventsLost));
    // At once: waiting would change nothing.
    let answer = pod.ask().await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("open a new one"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_request_waits_for_its_pod_s_record() {
    let stage = stage(Verdict::Unrecorded, LONG).await;
    let mut pod = stage.connect().await;
    pod.send().await;
    // As it opened, and at the request, before and after it began to wait.
    stage.asked(0).await;
    stage.asked(1).await;
    stage.asked(2).await;
    stage.places.say(Some(Verdict::Same));
    stage.picture.touch();
    let answer = pod.answer().await;
    assert!(answer.contains(IDENTIFIED), "{answer}");
}
