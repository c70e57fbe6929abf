//! The accept loop that all TCP ports share.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::drain::Drain;

/// Maximum number of connections for ports that have a limit of their own.
pub(crate) const UNLIMITED: usize = Semaphore::MAX_PERMITS;
/// Pause after the kernel failed to accept a connection, for example because no file descriptors
/// are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time that sent data may stay unacknowledged.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepts connections on `listener` until the drain begins, at most `limit` at a time; more wait
/// in the kernel's queue. `admit` returns the function that handles a connection, or `None` to
/// close it. Each connection is handled in a task that the drain waits for.
pub(crate) async fn accept<A, H, F>(listener: TcpListener, limit: usize, drain: &Drain, admit: A)
where
    A: Fn(&TcpStream, SocketAddr) -> Option<H>,
    H: FnOnce(TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let places = Arc::new(Semaphore::new(limit));
    let mut begun = pin!(drain.begun());
    let mut accepts = true;
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut begun => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                accepts = true;
                if let Some(handle) = admit(&stream, peer) {
                    drain.spawn(async move {
                        prepare(&stream);
                        handle(stream).await;
                        drop(place);
                    });
                }
            }
            Err(error) => {
                if std::mem::take(&mut accepts) {
                    tracing::warn!(%error, "cannot accept connections, retrying");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn prepare(stream: &TcpStream) {
    // Responses are small and written at once: waiting to fill a packet only adds latency.
    let _ = stream.set_nodelay(true);
    // Unacknowledged data is not retransmitted for long: another pod may have the address soon.
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT));
}
