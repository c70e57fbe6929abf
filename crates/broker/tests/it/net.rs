//! The network between agents and brokers (one address for several brokers, which can be cut), and
//! pods that keep sending requests.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rolegate_agent::app::Agent;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::harness::get_at;

/// Minimum number of requests of a load.
const MIN_REQUESTS: usize = 10;

/// Forwards connections to the brokers in turn, as a Service does.
pub(crate) struct Network {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    targets: Mutex<Vec<SocketAddr>>,
    stalled: watch::Sender<bool>,
    gone: watch::Sender<Option<SocketAddr>>,
}

impl Network {
    pub(crate) async fn to(targets: &[SocketAddr]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            targets: Mutex::new(targets.to_vec()),
            stalled: watch::Sender::new(false),
            gone: watch::Sender::new(None),
        });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self {
            address,
            shared,
            task,
        }
    }

    /// Silently drops all traffic, or lets new connections pass again.
    pub(crate) fn stall(&self, stalled: bool) {
        self.shared.stalled.send_replace(stalled);
    }

    /// Forwards new connections to these brokers from now on.
    pub(crate) fn lead_to(&self, targets: &[SocketAddr]) {
        *self.shared.targets.lock() = targets.to_vec();
    }

    /// Removes a broker and its connections.
    pub(crate) fn lose(&self, target: SocketAddr) {
        self.shared.targets.lock().retain(|it| *it != target);
        self.shared.gone.send_replace(Some(target));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut relays = JoinSet::new();
    let mut turn = 0;
    loop {
        let Ok((near, _)) = listener.accept().await else {
            continue;
        };
        let target = {
            let targets = shared.targets.lock();
            turn += 1;
            targets.get(turn % targets.len().max(1)).copied()
        };
        if let Some(target) = target {
            relays.spawn(relay(near, target, shared.clone()));
        }
    }
}

async fn relay(mut near: TcpStream, target: SocketAddr, shared: Arc<Shared>) {
    let Ok(mut far) = TcpStream::connect(target).await else {
        return;
    };
    let stalls = |is| becomes(&shared.stalled, move |stalled| *stalled == is);
    if !*shared.stalled.borrow() {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
            () = becomes(&shared.gone, |gone| *gone == Some(target)) => return,
            () = stalls(true) => {}
        }
    }
    // Both ends wait for data that never arrives.
    stalls(false).await;
}

async fn becomes<T>(value: &watch::Sender<T>, is: impl Fn(&T) -> bool) {
    let _ = value.subscribe().wait_for(is).await;
}

/// A pod that keeps sending requests.
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    task: JoinHandle<(usize, Vec<(u16, String)>)>,
}

impl Load {
    /// Starts requests of pod `from` to `agent` for `path`.
    pub(crate) fn start(agent: &Agent, from: Ipv4Addr, path: &str) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (port, path) = (agent.addresses().pods.port(), path.to_owned());
        let task = tokio::spawn(async move {
            let (mut count, mut failed) = (0, Vec::new());
            while !*stopped.borrow() || count < MIN_REQUESTS {
                let answer = get_at(port, from, &path).await;
                count += 1;
                if answer.0 != 200 {
                    failed.push(answer);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (count, failed)
        });
        Self { stop, task }
    }

    /// Checks that all requests were answered with credentials.
    pub(crate) async fn succeeded(self) {
        self.stop.send_replace(true);
        let (count, failed) = self.task.await.unwrap();
        assert!(
            failed.is_empty(),
            "{} of {count}: {:?}",
            failed.len(),
            failed.first()
        );
    }
}
