//! Tests with a scripted API server on paused time.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use kube::client::{Body, ClientBuilder, DynBody};
use rolegate_runtime::readiness::Readiness;
use rolegate_service_account_token::Algorithm;
use rolegate_service_account_token::test_util::Signer;
use serde_json::json;
use tower::{BoxError, service_fn};

use super::*;

/// The API server: its key set or a status, and the number of fetches.
struct Script {
    answer: Mutex<Result<String, u16>>,
    fetches: AtomicUsize,
}

impl Script {
    fn set(&self, answer: Result<&[&Signer], u16>) {
        *self.answer.lock() = answer.map(Signer::key_set);
    }

    fn fetches(&self) -> usize {
        self.fetches.load(SeqCst)
    }
}

/// Starts a store over a scripted API server.
fn start(answer: Result<&[&Signer], u16>) -> (Arc<Script>, ServiceAccountKeys, Readiness) {
    let script = Arc::new(Script {
        answer: Mutex::new(answer.map(Signer::key_set)),
        fetches: AtomicUsize::new(0),
    });
    let server = script.clone();
    let service = service_fn(move |request: Request<Body>| {
        let answer = server.answer.lock().clone();
        let (status, text) = match (request.uri().path(), answer) {
            (_, Err(status)) => (status, String::new()),
            ("/.well-known/openid-configuration", _) => {
                (200, json!({"issuer": "https://issuer"}).to_string())
            }
            ("/openid/v1/jwks", Ok(keys)) => {
                server.fetches.fetch_add(1, SeqCst);
                (200, keys)
            }
            (path, _) => panic!("{path}"),
        };
        async move {
            let body = Full::new(Bytes::from(text)).map_err(BoxError::from);
            let body: Box<DynBody> = Box::new(body);
            Ok::<_, BoxError>(Response::builder().status(status).body(body).unwrap())
        }
    });
    let builder = ClientBuilder::new(service, "default");
    let connection = Connection::over(builder, "http://script".into());
    let readiness = Readiness::new();
    let condition = readiness.condition("keys");
    let (keys, fetcher) = ServiceAccountKeys::new(connection, condition, &mut Registry::default());
    tokio::spawn(fetcher.run());
    (script, keys, readiness)
}

fn signer(id: &str) -> Signer {
    Signer::generate(id, Algorithm::Es256)
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_found_at_once_and_a_removed_one_is_dropped() {
    let (old, new) = (signer("old"), signer("new"));
    let (script, keys, readiness) = start(Ok(&[&old]));
    let found = keys.find("old").await.unwrap();
    assert_eq!(found.published.issuer.as_str(), "https://issuer");
    assert!(readiness.is_ready());
    script.set(Ok(&[&old, &new]));
    let began = Instant::now();
    assert_eq!(keys.find("new").await.unwrap().key.id(), "new");
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(keys.published().unwrap().generation, 2);
    script.set(Ok(&[&new]));
    tokio::time::sleep(REFRESH_INTERVAL + Duration::from_secs(1)).await;
    assert_eq!(keys.find("old").await.unwrap_err(), KeyLookupError::Unknown);
    // The same documents are the same state.
    tokio::time::sleep(REFRESH_INTERVAL * 3).await;
    assert_eq!(keys.published().unwrap().generation, 3);
}

#[tokio::test(start_paused = true)]
async fn threat_19_unknown_keys_fetch_at_a_bounded_rate() {
    let good = signer("good");
    let (script, keys, _) = start(Ok(&[&good]));
    keys.find("good").await.unwrap();
    let began = Instant::now();
    for n in 0..100 {
        let id = format!("forged-{}", n % 50);
        assert_eq!(keys.find(&id).await.unwrap_err(), KeyLookupError::Unknown);
        // A known key never waits.
        assert!(keys.find_now("good").unwrap().is_some());
    }
    let seconds = began.elapsed().as_secs_f64();
    let allowed = UNKNOWN_KEY_FETCHES.burst + UNKNOWN_KEY_FETCHES.per_second * seconds + 2.0;
    let fetches = script.fetches();
    assert!((fetches as f64) <= allowed, "{fetches} in {seconds} s");
    // Without a fetch for those that are remembered.
    let last = script.fetches();
    for _ in 0..10 {
        assert_eq!(
            keys.find("forged-49").await.unwrap_err(),
            KeyLookupError::Unknown
        );
    }
    assert_eq!(script.fetches(), last);
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_api_server_is_not_a_refusal() {
    let (old, new) = (signer("old"), signer("new"));
    let (script, keys, readiness) = start(Err(403));
    assert_eq!(
        keys.find("old").await.unwrap_err(),
        KeyLookupError::Unavailable
    );
    let report = readiness.report().to_text(true);
    assert!(
        report.contains("system:service-account-issuer-discovery"),
        "{report}"
    );
    assert!(!readiness.is_ready());
    script.set(Ok(&[&old]));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(readiness.is_ready() && keys.find_now("old").unwrap().is_some());
    script.set(Err(500));
    assert_eq!(
        keys.find("new").await.unwrap_err(),
        KeyLookupError::Unavailable
    );
    // Known keys stay in use, and the failure is not remembered.
    assert!(readiness.is_ready() && keys.find_now("old").unwrap().is_some());
    script.set(Ok(&[&old, &new]));
    assert!(keys.find("new").await.is_ok());
}
