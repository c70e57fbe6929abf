//! Elections without an API server, on paused time: a Lease in memory checks versions and can be
//! made unreachable.

mod further_task;

use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use k8s_openapi::api::coordination::v1::LeaseSpec;
use kube::client::Body;
use parking_lot::Mutex;
use rolegate_runtime::readiness::Readiness;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::record::{Seen, Step, held, released, step};
use super::*;

/// The API server, limited to one Lease.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Stored>>);

#[derive(Default)]
struct Stored {
    lease: Option<Value>,
    version: u64,
    /// Candidates whose requests get no response.
    cut: Vec<&'static str>,
}

impl Server {
    fn client(&self, candidate: &'static str) -> Client {
        let server = self.clone();
        let answer = move |request: Request<Body>| {
            let server = server.clone();
            async move {
                if server.0.lock().cut.contains(&candidate) {
                    std::future::pending::<()>().await;
                }
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let (status, body) = server.answer(&parts.method, &body);
                let body = Body::from(body.to_string().into_bytes());
                let answer = Response::builder().status(status).body(body).unwrap();
                Ok::<_, Infallible>(answer)
            }
        };
        Client::new(tower::service_fn(answer), "default")
    }

    fn answer(&self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
        let mut stored = self.0.lock();
        let failed = |code: u16, reason| {
            let status = json!({"kind": "Status", "status": "Failure", "code": code,
                "reason": reason, "message": reason});
            (StatusCode::from_u16(code).unwrap(), status)
        };
        if method == Method::GET {
            return match &stored.lease {
                Some(lease) => (StatusCode::OK, lease.clone()),
                None => failed(404, "NotFound"),
            };
        }
        let mut lease: Value = serde_json::from_slice(body).unwrap();
        let there = stored.lease.as_ref();
        let stored_version = there.map(|lease| lease["metadata"]["resourceVersion"].clone());
        let version = lease["metadata"].get("resourceVersion").cloned();
        if (method == Method::POST && there.is_some())
            || (method == Method::PUT && version != stored_version)
        {
            return failed(409, "Conflict");
        }
        stored.version += 1;
        lease["metadata"]["resourceVersion"] = json!(stored.version.to_string());
        stored.lease = Some(lease.clone());
        (StatusCode::OK, lease)
    }

    fn spec(&self) -> LeaseSpec {
        let stored = self.0.lock();
        let lease = stored.lease.as_ref().expect("there is no Lease");
        serde_json::from_value(lease["spec"].clone()).unwrap()
    }

    fn cut(&self, candidate: &'static str) {
        self.0.lock().cut.push(candidate);
    }
}

/// The leaders, as all candidates see them.
#[derive(Clone)]
struct Leaders(watch::Sender<Vec<&'static str>>);

impl Leaders {
    fn new() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }

    async fn until(&self, expected: &[&str]) {
        let mut working = self.0.subscribe();
        let seen = working.wait_for(|working| working == expected);
        let seen = timeout(Duration::from_secs(600), seen).await;
        seen.expect("that never happens").unwrap();
    }
}

/// Marks a candidate as leading while it exists.
struct Leader(&'static str, Leaders);

impl Leader {
    fn take(name: &'static str, leaders: &Leaders) -> Self {
        leaders.0.send_modify(|working| {
            assert!(
                working.is_empty(),
                "{name} leads in addition to {working:?}"
            );
            working.push(name);
        });
        Self(name, leaders.clone())
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let gone = |working: &mut Vec<_>| working.retain(|name| *name != self.0);
        self.1.0.send_modify(gone);
    }
}

/// Starts a candidate. Its work stops at the end of its leadership if `obeys`, and otherwise never.
fn candidate(server: &Server, leaders: &Leaders, name: &'static str, obeys: bool) -> Candidate {
    let leaders = leaders.clone();
    working(server, name, move |leading| {
        let leaders = leaders.clone();
        async move {
            let _leader = Leader::take(name, &leaders);
            leading.cancelled().await;
            if !obeys {
                std::future::pending::<()>().await;
            }
        }
    })
}

/// Starts a candidate that does `work` while it leads.
fn working<W, F>(server: &Server, name: &'static str, work: W) -> Candidate
where
    W: FnMut(CancellationToken) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let readiness = Readiness::new();
    let options = LeaseOptions {
        namespace: "default".into(),
        name: "test".into(),
        identity: name.into(),
        timing: LeaseTiming::default(),
    };
    let clock = Clock::tokio("2030-01-01T00:00:00Z".parse().unwrap());
    let condition = readiness.condition("lease");
    let leadership = Leadership::new(options, clock, condition, Gauge::default());
    let stop = CancellationToken::new();
    let run = leadership.run(server.client(name), stop.clone(), work);
    Candidate {
        stop,
        task: tokio::spawn(run),
        readiness,
    }
}

struct Candidate {
    stop: CancellationToken,
    task: JoinHandle<()>,
    readiness: Readiness,
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_another_at_once_when_it_stops() {
    let (server, leaders) = (Server::default(), Leaders::new());
    let a = candidate(&server, &leaders, "a", true);
    leaders.until(&["a"]).await;
    let b = candidate(&server, &leaders, "b", true);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(*leaders.0.borrow(), ["a"]);
    assert!(b.readiness.is_ready(), "who doesn't lead is ready as well");
    let spec = server.spec();
    assert_eq!(spec.holder_identity.as_deref(), Some("a"));
    assert_eq!(spec.lease_transitions, Some(0));
    assert_eq!(spec.lease_duration_seconds, Some(15));

    let stopped = Instant::now();
    a.stop.cancel();
    a.task.await.unwrap();
    assert_eq!(server.spec().holder_identity.as_deref(), Some(""));
    leaders.until(&["b"]).await;
    // The longest wait between two attempts.
    assert!(stopped.elapsed() < Duration::from_secs(5));
    assert_eq!(server.spec().lease_transitions, Some(1));
    b.stop.cancel();
    b.task.await.unwrap();
    leaders.until(&[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_another_begins() {
    for obeys in [true, false] {
        let (server, leaders) = (Server::default(), Leaders::new());
        let a = candidate(&server, &leaders, "a", obeys);
        leaders.until(&["a"]).await;
        let _b = candidate(&server, &leaders, "b", true);
        tokio::time::sleep(Duration::from_secs(61)).await;
        server.cut("a");
        let cut = Instant::now();
        leaders.until(&[]).await;
        let stopped = cut.elapsed();
        assert!(stopped <= Duration::from_secs(13), "after {stopped:?}");
        leaders.until(&["b"]).await;
        let taken = cut.elapsed();
        assert!(taken >= Duration::from_secs(13), "after {taken:?}");
        assert!(a.readiness.is_ready());
        assert!(a.readiness.report().noted.contains_key("lease"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_taken_away_by_hand_ends_the_lead() {
    let (server, leaders) = (Server::default(), Leaders::new());
    let _a = candidate(&server, &leaders, "a", true);
    leaders.until(&["a"]).await;
    {
        let mut stored = server.0.lock();
        let lease = stored.lease.as_mut().unwrap();
        lease["spec"]["holderIdentity"] = json!("other-replica");
        lease["metadata"]["resourceVersion"] = json!("1000");
    }
    leaders.until(&[]).await;
    // A holder that does not renew it keeps it for its duration only.
    leaders.until(&["a"]).await;
    assert_eq!(server.spec().lease_transitions, Some(1));
}

#[tokio::test(start_paused = true)]
async fn of_many_candidates_one_leads_at_a_time() {
    let (server, leaders) = (Server::default(), Leaders::new());
    let names = ["a", "b", "c", "d", "e"];
    let mut all: Vec<_> = names
        .iter()
        .map(|name| (*name, candidate(&server, &leaders, name, true)))
        .collect();
    // Each leader checks that it is the only one.
    for left in (0..names.len()).rev() {
        let mut seen = leaders.0.subscribe();
        let leader = seen.wait_for(|working| !working.is_empty()).await.unwrap()[0];
        let at = all.iter().position(|(name, _)| *name == leader).unwrap();
        let (_, candidate) = all.remove(at);
        candidate.stop.cancel();
        candidate.task.await.unwrap();
        assert_eq!(all.len(), left);
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_ends_by_itself_gives_the_lease_up() {
    let server = Server::default();
    let readiness = Readiness::new();
    let options = LeaseOptions {
        namespace: "default".into(),
        name: "test".into(),
        identity: "a".into(),
        timing: LeaseTiming::default(),
    };
    let clock = Clock::tokio("2030-01-01T00:00:00Z".parse().unwrap());
    let gauge = Gauge::default();
    let leads = gauge.clone();
    let leadership = Leadership::new(options, clock, readiness.condition("lease"), leads);
    let run = leadership.run(server.client("a"), CancellationToken::new(), |_| async {});
    let run = tokio::spawn(run);
    let given_up = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if server.0.lock().version >= 2 {
                return;
            }
        }
    };
    timeout(Duration::from_secs(60), given_up).await.unwrap();
    assert_eq!(server.spec().holder_identity.as_deref(), Some(""));
    assert_eq!(gauge.get(), 0);
    run.abort();
}

#[tokio::test(start_paused = true)]
async fn the_next_step_follows_from_the_lease_and_its_age() {
    let since = Instant::now();
    let seen = |holder: &str, seconds| Seen {
        metadata: Default::default(),
        spec: LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(seconds),
            ..LeaseSpec::default()
        },
        since,
    };
    let at = |seconds| since + Duration::from_secs(seconds);
    assert_eq!(step("me", None, at(0)), Step::Create);
    for (holder, seconds, now, expected) in [
        ("", 15, 0, Step::Take),
        ("me", 15, 0, Step::Renew),
        ("me", 15, 999, Step::Renew),
        ("other", 15, 0, Step::Wait),
        ("other", 15, 14, Step::Wait),
        ("other", 15, 15, Step::Take),
        ("other", 60, 59, Step::Wait),
        ("other", 0, 0, Step::Take),
        ("other", -1, 0, Step::Take),
        // The wait is always limited.
        ("other", i32::MAX, 599, Step::Wait),
        ("other", i32::MAX, 600, Step::Take),
    ] {
        let step = step("me", Some(&seen(holder, seconds)), at(now));
        assert_eq!(step, expected, "{holder} {seconds} {now}");
    }
}

#[test]
fn a_lease_is_written_as_others_read_it() {
    let now = "2030-01-01T00:00:00Z".parse().unwrap();
    let later = "2030-01-01T00:00:02.000001Z".parse().unwrap();
    let duration = Duration::from_secs(15);
    let first = held("a", None, duration, now);
    let second = held("a", Some(&first), duration, later);
    assert_eq!(
        serde_json::to_value(&second).unwrap(),
        json!({
            "holderIdentity": "a",
            "leaseDurationSeconds": 15,
            "leaseTransitions": 0,
            "acquireTime": "2030-01-01T00:00:00.000000Z",
            "renewTime": "2030-01-01T00:00:02.000001Z",
        })
    );
    let free = released(&second, later);
    assert_eq!(free.holder_identity.as_deref(), Some(""));
    assert_eq!(free.lease_duration_seconds, Some(1));
    let taken = held("b", Some(&free), duration, later);
    assert_eq!(taken.lease_transitions, Some(1));
    assert_eq!(taken.acquire_time, taken.renew_time);
    let other = held("c", Some(&taken), duration, later);
    assert_eq!(other.lease_transitions, Some(2));
}
