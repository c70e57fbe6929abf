//! A broker that welcomes an agent and then sends nothing, while its connection stays healthy.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use hyper_util::service::TowerToHyperService;
use rolegate_kube::tls_secret::CertificateSource;
use rolegate_proto::v1::broker_server::{Broker, BrokerServer};
use rolegate_proto::v1::{self, to_agent};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::drain::Drain;
use rolegate_runtime::http2::{Authentication, Limit, Limits, Peers, Usage, serve};
use rolegate_runtime::readiness::Readiness;
use rolegate_runtime::tls::{CertificateStore, ClientAuthorities, MutualTls};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming};

use crate::harness::{LOOPBACK, TestBrokers};
use crate::raw::eventually;

type Messages = Pin<Box<dyn Stream<Item = Result<v1::ToAgent, Status>> + Send>>;

/// Welcomes the first stream.
#[derive(Clone, Default)]
struct SilentBroker(Arc<AtomicBool>);

#[tonic::async_trait]
impl Broker for SilentBroker {
    type ServeStream = Messages;

    async fn serve(
        &self,
        _: Request<Streaming<v1::FromAgent>>,
    ) -> Result<Response<Messages>, Status> {
        let mark_served = !self.0.swap(true, Ordering::Relaxed);
        let welcome = v1::Welcome {
            broker: "mute".into(),
            reauthenticate_seconds: 600,
            heartbeat_interval_seconds: 1,
        };
        let welcome = v1::ToAgent {
            body: Some(to_agent::Body::Welcome(welcome)),
        };
        let said = stream::iter(mark_served.then_some(Ok(welcome)));
        Ok(Response::new(Box::pin(said.chain(stream::pending()))))
    }
}

/// Accepts peers from every address.
struct AnyPeer;

impl Peers for AnyPeer {
    fn is_expected(&self, _: std::net::IpAddr) -> bool {
        true
    }

    fn closed(&self, _: Limit) {}

    fn usage(&self, _: Usage) {}
}

#[tokio::test]
async fn agents_leave_a_silent_broker() {
    let harness = TestBrokers::new().await;
    let CertificateSource::Files(pair) = harness.broker_options("mute").certificate else {
        panic!("the harness has no files");
    };
    let read = |path| std::fs::read(path).unwrap();
    let condition = Readiness::new().condition("certificate");
    let store = Arc::new(CertificateStore::new("mute", Clock::system(), condition));
    store.set(&read(pair.certificate), &read(pair.key)).unwrap();
    let authorities = Arc::new(ClientAuthorities::default());
    authorities.set(&read(harness.path("ca.pem"))).unwrap();
    let tls = MutualTls::new(store, authorities, Clock::system()).unwrap();
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = Limits {
        connections: 10,
        per_peer: 10,
        streams: 8,
        unused: Duration::from_secs(30),
    };
    let (drain, mute) = (Drain::new(), SilentBroker::default());
    let connect = move |_: SocketAddr, _, shown: Authentication| {
        assert!(shown.succeed());
        let service = BrokerServer::new(mute.clone());
        Some(TowerToHyperService::new(service))
    };
    let peers = Arc::new(AnyPeer);
    let serving = serve(listener, tls, limits, drain.clone(), peers, connect);
    let serving = tokio::spawn(serving);

    let reach = harness.reach(address, "node-1", harness.node_pair("node-1"));
    let agent = harness.unready_agent(reach).await;
    eventually("the agent gives it up", || async {
        let report = agent.readiness().report().to_text(true);
        report.contains("the broker sent nothing for too long")
    })
    .await;
    drain.force();
    serving.abort();
}
