//! What a Service is to agents: one address, behind which each new connection goes to another
//! broker that still answers.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// Begins to forward connections; returns where.
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
                for place in first..first + brokers.len() {
                    let Some(broker) = brokers.get(place % brokers.len()) else {
                        return;
                    };
                    if let Ok(mut broker) = TcpStream::connect(broker).await {
                        // Either end may break it off.
                        let _ = tokio::io::copy_bidirectional(&mut agent, &mut broker).await;
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}
