//! A stand-in for a Service: one address that forwards each new connection to another broker that
//! is alive.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// Starts forwarding connections, and returns the address.
pub(crate) fn start(runtime: &Runtime, brokers: &[SocketAddr]) -> anyhow::Result<SocketAddr> {
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    let brokers: Arc<[SocketAddr]> = brokers.into();
    runtime.spawn(async move {
        let mut next = 0;
        while let Ok((mut agent, _)) = listener.accept().await {
            let (brokers, first) = (brokers.clone(), next);
            next += 1;
            tokio::spawn(async move {
                for index in first..first + brokers.len() {
                    let Some(broker) = brokers.get(index % brokers.len()) else {
                        return;
                    };
                    if let Ok(mut broker) = TcpStream::connect(broker).await {
                        // Either end may close it.
                        let _ = tokio::io::copy_bidirectional(&mut agent, &mut broker).await;
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}
