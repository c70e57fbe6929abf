//! A second, tiny endpoint: callers prove their pod by a token, and documents have another format.

use prometheus_client::registry::Registry;
use rolegate_authorizer::ledger::Ledger;
use rolegate_authorizer::pod::DecisionRecord;
use rolegate_core::engine::Cause;
use rolegate_core::session::{Credentials, Validity};
use rolegate_core::test_util::{pod, session_key};
use rolegate_core::workload::Workload;
use rolegate_runtime::staleness::Staleness;
use rolegate_sessions::{Document, RemoteSessions, Sessions};
use zeroize::Zeroizing;

use super::*;
use crate::address_verifier::Age;

/// The document of the tiny endpoint.
struct KeyDocument;

impl Document for KeyDocument {
    fn render(session: &Session) -> Zeroizing<Vec<u8>> {
        let credentials = &session.credentials;
        let text = format!("key={}", credentials.access_key_id);
        Zeroizing::new(text.into_bytes())
    }
}

/// The whole endpoint: the caller has verified the token that names the pod's UID.
async fn respond(source: &CredentialSource, uid: &str) -> (u16, Bytes) {
    match source.session_of(uid).await {
        Ok(session) => (200, session.document::<KeyDocument>()),
        Err(Refusal::UnknownPod) => (404, "unknown pod".into()),
        Err(Refusal::NoRole) => (404, "no role".into()),
        Err(Refusal::Denied(reason)) => (403, reason),
        Err(_) => (503, "try again".into()),
    }
}

fn source() -> CredentialSource {
    let pod_table = PodTable::default();
    pod_table.set_synced(true);
    CredentialSource {
        pod_table: Arc::new(pod_table),
        decisions: DecisionSource::Broker(Clock::system()),
        verifier: AddressVerifier::default(),
        max_staleness: Duration::from_secs(3600),
        outcomes: OutcomeRecorder::new(None, Ledger::default()),
        metrics: AgentMetrics::register(&mut Registry::default()),
        clock: Clock::system(),
        wait: Duration::from_secs(60),
    }
}

/// Publishes a pod without any address.
fn publish(source: &CredentialSource, uid: &str, authorization: Authorization) {
    let workload = Workload {
        uid: uid.into(),
        host_network: true,
        addresses: Vec::new(),
        ..pod(None)
    };
    let decided = DecisionRecord {
        generation: 0,
        expires_at: None,
        authorization,
    };
    let entry = Arc::new(PodEntry::new(Arc::new(workload), decided));
    source
        .pod_table
        .publish(Vec::new(), vec![(uid.into(), Some(entry))]);
}

fn lease() -> (Lease, RemoteSessions) {
    let (sessions, remote) = Sessions::remote();
    (
        sessions.lease(session_key("reader"), "shop".into(), Cause::New),
        remote,
    )
}

#[tokio::test]
async fn a_second_endpoint_serves_pods_by_uid() {
    let source = source();
    let (lease, remote) = lease();
    let key = lease.cell().key().clone();
    let allowed = Allowed {
        role: key.role.clone(),
        role_name: "reader".into(),
        since: source.clock.now(),
        rules: [].into(),
        audited: Vec::new(),
        lease: Arc::new(lease),
    };
    publish(&source, "u1", Authorization::Allowed(allowed));
    publish(&source, "u2", Authorization::NoRole);
    let waiting = {
        let source = source.clone();
        tokio::spawn(async move { respond(&source, "u1").await })
    };
    tokio::task::yield_now().await;
    let from = source.clock.now();
    let until = from + Duration::from_secs(3600);
    let credentials = Credentials::new(
        "ASIA1",
        "secret",
        "token",
        Validity {
            not_before: from,
            not_after: until,
        },
    );
    remote.store(&key, Some(credentials), None);
    assert_eq!(waiting.await.unwrap(), (200, "key=ASIA1".into()));
    assert_eq!(respond(&source, "u2").await, (404, "no role".into()));
}

#[tokio::test(start_paused = true)]
async fn pods_that_stay_unknown_are_refused_at_the_deadline() {
    let source = source();
    assert_eq!(respond(&source, "u1").await, (404, "unknown pod".into()));
    publish(&source, "u1", Authorization::Pending);
    assert_eq!(respond(&source, "u1").await, (503, "try again".into()));
}

#[tokio::test(start_paused = true)]
async fn an_unreliable_pod_table_serves_no_pod_by_uid() {
    let mut source = source();
    source.max_staleness = Duration::ZERO;
    publish(&source, "u1", Authorization::NoRole);
    let outdated = Staleness::default();
    outdated.update(Duration::from_secs(1));
    source.verifier = AddressVerifier::new(Some(Age::Broker(outdated.into())), None);
    assert_eq!(respond(&source, "u1").await, (503, "try again".into()));
    source.verifier = AddressVerifier::default();
    assert_eq!(respond(&source, "u1").await, (404, "no role".into()));
    source.pod_table.set_synced(false);
    assert_eq!(respond(&source, "u1").await, (503, "try again".into()));
}
