//! The shares of a node's pods in the resources of its agent.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rolegate_testkit::eventually;

use crate::fixture::DEADLINE;
use crate::loopback::{Agent, Client, Surroundings, connect};

/// The number of greedy pods.
const GREEDY: u8 = 32;
/// The number of connections that each greedy pod tries to hold: together more than the agent
/// accepts.
const EACH: usize = 80;
/// The number of new connections that each of them opens for lost ones.
const REOPENED: usize = 1000;
/// The number of a neighbor's requests meanwhile.
const REQUESTS: usize = 100;
/// The number of worker processes of one pod.
const WORKERS: usize = 200;
/// The number of connections that an agent accepts from all pods.
const ALL: f64 = 2048.0;

const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(127, 2, 0, 1);
const WORKER: Ipv4Addr = Ipv4Addr::new(127, 2, 0, 2);

fn greedy(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 1, 0, n)
}

/// The second address of a pod with two.
fn second(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 1, 1, n)
}

/// An open connection on which credentials were served.
fn served(from: Ipv4Addr, port: u16) -> anyhow::Result<Client> {
    let mut client = connect(from, port)?;
    let answer = client.credentials()?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(client)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pod_starves_no_neighbour() -> anyhow::Result<()> {
    more_files()?;
    let fixture = Surroundings::new().await?;
    fixture.pod("neighbour", &[NEIGHBOUR]);
    fixture.pod("worker", &[WORKER]);
    for n in 1..=GREEDY {
        fixture.pod(&format!("greedy-{n}"), &[greedy(n), second(n)]);
    }
    // The soft limit of open files is lower than the number of connections, until the agent raises
    // it.
    let flags = ["--metadata-allow=meta-data/tags/.*"];
    let mut agent = fixture.agent(1024, &flags).await?;
    agent.serves(NEIGHBOUR).await?;
    agent.serves(second(GREEDY)).await?;
    all_workers_are_served(&agent)?;

    let before = agent.memory()?;
    let mut kept = served(NEIGHBOUR, agent.port())?;
    let held: Vec<Vec<Client>> = (1..=GREEDY)
        .map(|n| {
            // Both addresses of a pod count for the pod.
            let from = [greedy(n), second(n)];
            let one = |k: usize| served(from[k % 2], agent.port());
            (0..EACH).map(one).collect()
        })
        .collect::<anyhow::Result<_>>()?;
    let open = held.iter().flatten().map(Client::is_closed);
    let open = open.collect::<anyhow::Result<Vec<_>>>()?;
    let open = open.iter().filter(|closed| !**closed).count();
    println!(
        "{open} of {} connections are open, {:.1} KiB of the agent's memory each",
        usize::from(GREEDY) * EACH,
        (agent.memory()? - before) / 1024.0 / ALL,
    );
    ensure!(open as f64 > 0.9 * ALL && open as f64 <= ALL, "{open}");
    ensure!(agent.metric("rolegate_limit_reached_total{limit=\"connections\"} ")? > 0.0);
    eventually(DEADLINE, async || {
        let ready = agent.admin("/readyz")?;
        ensure!(
            ready.status == 200 && ready.body.contains("limits: reached"),
            "{ready:?}"
        );
        Ok(())
    })
    .await?;
    neighbours_are_served(&agent, &mut kept, held)?;
    forwards_are_shared(&fixture, &agent)?;
    let stranger = strangers_leave_room(&agent)?;
    drop(stranger);
    let rss = agent.memory()? / 1024.0 / 1024.0;
    println!("{rss:.1} MiB after all");
    Ok(())
}

/// The agent serves all connections of a large machine's worker processes, and closes none of them
/// before.
fn all_workers_are_served(agent: &Agent) -> anyhow::Result<()> {
    let workers = (0..WORKERS).map(|_| agent.connect(WORKER));
    let mut workers = workers.collect::<anyhow::Result<Vec<_>>>()?;
    for worker in &mut workers {
        let answer = worker.credentials().context("a worker's first request")?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    // Clients that were asked to close their connection open another; the others continue.
    for mut worker in workers {
        if worker.is_closed()? {
            worker = agent.connect(WORKER)?;
        }
        let answer = worker.credentials().context("a worker's second request")?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    let evicted = agent.metric("rolegate_limit_reached_total{limit=\"pod_connections\"} ")?;
    ensure!(
        evicted == 0.0,
        "{evicted} connections of workers were closed"
    );
    Ok(())
}

/// A neighbor is served while greedy pods reopen lost connections.
fn neighbours_are_served(
    agent: &Agent,
    kept: &mut Client,
    held: Vec<Vec<Client>>,
) -> anyhow::Result<()> {
    let port = agent.port();
    let stop = AtomicBool::new(false);
    let reopened = AtomicUsize::new(0);
    thread::scope(|scope| {
        for (n, mut held) in (1..=GREEDY).zip(held) {
            let (stop, reopened) = (&stop, &reopened);
            scope.spawn(move || {
                let closed = |client: &Client| client.is_closed().unwrap_or(true);
                let mut left = REOPENED;
                while !stop.load(Ordering::Relaxed) && left > 0 {
                    for client in &mut held {
                        if left == 0 || stop.load(Ordering::Relaxed) {
                            break;
                        }
                        if closed(client)
                            && let Ok(new) = connect(greedy(n), port)
                        {
                            left -= 1;
                            *client = new;
                            // Not all of them wait for their responses.
                            if left.is_multiple_of(2) {
                                let _ = client.credentials();
                            }
                            reopened.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                held
            });
        }
        let done = (|| {
            let mut times = Vec::new();
            for _ in 0..REQUESTS {
                let begun = Instant::now();
                served(NEIGHBOUR, port).context("a neighbour of greedy pods")?;
                times.push(begun.elapsed());
            }
            times.sort_unstable();
            println!(
                "a neighbour's first byte while {} connections were opened: median {:.1?}, longest {:.1?}",
                reopened.load(Ordering::Relaxed),
                times[times.len() / 2],
                times[times.len() - 1],
            );
            // The neighbor keeps its one connection.
            let answer = kept.credentials().context("the kept connection")?;
            ensure!(answer.status == 200, "{answer:?}");
            // A pod with many workers has its share, and each worker is served.
            let workers = (0..WORKERS).map(|_| served(WORKER, port));
            let workers = workers.collect::<anyhow::Result<Vec<_>>>();
            workers.context("a worker next to greedy pods").map(drop)
        })();
        stop.store(true, Ordering::Relaxed);
        done
    })
}

/// Four greedy pods leave a fifth pod its share of forwarded requests and of their cache.
fn forwards_are_shared(fixture: &Surroundings, agent: &Agent) -> anyhow::Result<()> {
    let port = agent.port();
    let region = "/latest/meta-data/placement/region";
    let mut neighbour = connect(NEIGHBOUR, port)?;
    ensure!(neighbour.request("GET", region, &[])?.status == 200);
    let stop = AtomicBool::new(false);
    let [limited, passed] = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let ask = |from: Ipv4Addr, place: usize| {
        let mut client = connect(from, port)?;
        for n in 0..200 {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            // Nonexistent paths are cached too, each in turn.
            let name = place * 200 + n;
            let path = format!("/latest/meta-data/placement/made-up-{name}");
            let answer = client.request("GET", &path, &[])?;
            let counter = if answer.status == 429 {
                &limited
            } else {
                &passed
            };
            counter.fetch_add(1, Ordering::Relaxed);
            if answer.closes {
                break;
            }
        }
        anyhow::Ok(())
    };
    thread::scope(|scope| {
        for n in 1..=4 {
            for from in [greedy(n), second(n)] {
                let (ask, stop) = (&ask, &stop);
                scope.spawn(move || {
                    for place in (usize::from(n) * 1000..).take(500) {
                        if stop.load(Ordering::Relaxed) || ask(from, place).is_err() {
                            break;
                        }
                    }
                });
            }
        }
        let done = (|| {
            for n in 0..100 {
                // The rate of the pod: less than a fifth of 200 per second.
                thread::sleep(Duration::from_millis(30));
                let path = format!("/latest/meta-data/tags/instance/{n}");
                let answer = neighbour.request("GET", &path, &[])?;
                ensure!(answer.status == 404, "request {n}: {answer:?}");
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        done
    })?;
    let [limited, passed] = [limited, passed].map(AtomicUsize::into_inner);
    println!("of four greedy pods {passed} requests were passed on and {limited} refused");
    ensure!(limited > 0 && passed > 0);
    ensure!(neighbour.request("GET", region, &[])?.status == 200);
    let requests = fixture.imds.requests();
    let of_region = requests
        .iter()
        .filter(|it| it.path == region && it.method == "GET");
    ensure!(
        of_region.count() <= 2,
        "the region was pushed out of what is kept"
    );
    ensure!(agent.metric("rolegate_limit_reached_total{limit=\"forwards\"} ")? > 0.0);
    Ok(())
}

/// Addresses of no pod get at most their share, and are evicted for pods.
fn strangers_leave_room(agent: &Agent) -> anyhow::Result<Vec<Client>> {
    let stranger = |n: u8| Ipv4Addr::new(127, 3, 0, n);
    let held = (0..=u8::MAX).flat_map(|n| (0..3).map(move |_| n));
    let held = held.map(|n| agent.connect(stranger(n)));
    let held = held.collect::<anyhow::Result<Vec<_>>>()?;
    served(NEIGHBOUR, agent.port()).context("a pod next to strangers")?;
    let open = eventually_closed(&held)?;
    println!("{open} of {} connections of strangers are open", held.len());
    ensure!(
        agent.metric("rolegate_limit_reached_total{limit=\"unknown_peer_connections\"} ")? > 0.0
    );
    // A later client is served in turn, such as a pod that is not known yet.
    let mut late = agent.connect(Ipv4Addr::new(127, 3, 1, 1))?;
    ensure!(late.request("GET", "/", &[])?.status == 200);
    Ok(held)
}

fn eventually_closed(held: &[Client]) -> anyhow::Result<usize> {
    let open = held.iter().map(Client::is_closed);
    let open = open.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(open.iter().filter(|closed| !**closed).count())
}

/// Raises this test's own limit of open files for its ends of the connections.
fn more_files() -> anyhow::Result<()> {
    let now = rolegate_runtime::process::raise_open_files();
    ensure!(
        now > 6000,
        "the tests may open {now} files only: raise the hard limit (ulimit -Hn)"
    );
    Ok(())
}
