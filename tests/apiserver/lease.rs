//! Leader elections by a Lease on a real API server, with a leader that loses its connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use prometheus_client::metrics::gauge::Gauge;
use rolegate_controller::lease::{Leadership, LeaseOptions};
use rolegate_kube::client::{ClientOptions, Connection};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::readiness::Readiness;
use rolegate_testkit::eventually;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::controller::{ControllerFixture, DEADLINE, quick};

/// A connection to the API server that can be interrupted: it stays open, but no data passes.
struct TestConnection {
    url: String,
    open: watch::Sender<bool>,
}

impl TestConnection {
    async fn new(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let open = watch::Sender::new(true);
        let receiver = open.subscribe();
        tokio::spawn(async move {
            while let Ok((inside, _)) = listener.accept().await {
                let mut open = receiver.clone();
                tokio::spawn(async move {
                    let outside = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    let (mut inside, mut outside) = (inside, outside);
                    let cut = async { drop(open.wait_for(|open| !open).await) };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut inside, &mut outside) => return,
                        () = cut => {}
                    }
                    // Both ends stay open and receive no data.
                    std::future::pending::<()>().await;
                });
            }
        });
        Self { url, open }
    }
}

/// The number of replicas that work as the leader. A Lease prevents more than one at a time.
#[derive(Clone, Default)]
struct ActiveLeaders(Arc<AtomicI64>);

impl ActiveLeaders {
    fn run(
        &self,
        fixture: &ControllerFixture,
        client: kube::Client,
        identity: &str,
        stop: &CancellationToken,
    ) -> Gauge {
        let readiness = Readiness::new();
        let options = LeaseOptions {
            namespace: fixture.namespace.into(),
            name: "rolegate-controller".into(),
            identity: identity.into(),
            timing: quick(),
        };
        let leads = Gauge::default();
        let condition = readiness.condition("lease");
        let leadership = Leadership::new(options, Clock::system(), condition, leads.clone());
        let (works, stop) = (self.0.clone(), stop.clone());
        tokio::spawn(leadership.run(client, stop, move |leading| {
            let works = works.clone();
            async move {
                assert_eq!(works.fetch_add(1, SeqCst), 0, "two lead at once");
                leading.cancelled().await;
                works.fetch_sub(1, SeqCst);
            }
        }));
        leads
    }
}

async fn until(gauge: &Gauge, value: i64) {
    eventually(DEADLINE, async || {
        ensure!(gauge.get() == value, "it is {}", gauge.get());
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_leader_that_hangs_stops_by_itself_and_another_takes_over() {
    let fixture = ControllerFixture::new("lease-cut").await;
    let way = TestConnection::new(fixture.cluster.port()).await;
    let cut_off = ClientOptions {
        api_server: Some(way.url.clone()),
        ..fixture.client.clone()
    };
    let cut_off = Connection::new(&cut_off).await.unwrap().client();
    let stop = CancellationToken::new();
    let works = ActiveLeaders::default();
    let first = works.run(&fixture, cut_off, "first", &stop);
    until(&first, 1).await;
    let second = works.run(&fixture, fixture.connect().await, "second", &stop);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((first.get(), second.get()), (1, 0));

    way.open.send_replace(false);
    until(&second, 1).await;
    assert_eq!(first.get(), 0, "it leads on without knowing");

    let leases = Api::<Lease>::namespaced(fixture.cluster.admin().unwrap(), fixture.namespace);
    let spec = leases.get("rolegate-controller").await.unwrap().spec;
    let spec = spec.unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some("second"));
    assert_eq!(spec.lease_transitions, Some(1));
    assert_eq!(spec.lease_duration_seconds, Some(6));
    assert!(spec.renew_time >= spec.acquire_time);

    stop.cancel();
    eventually(DEADLINE, async || {
        let spec = leases.get("rolegate-controller").await?.spec;
        let holder = spec.and_then(|spec| spec.holder_identity);
        ensure!(holder.as_deref() == Some(""), "{holder:?} holds it");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(second.get(), 0);
}
