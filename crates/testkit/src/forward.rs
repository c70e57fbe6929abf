//! Forwards ports of the host's loopback into a network namespace, which has a loopback of its own,
//! so that an agent on a lab's node reaches the API server, and an SDK in a pod reaches STS.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::lab::Namespace;

/// Forwards connections until dropped.
#[derive(Debug)]
pub struct Forward {
    _stop: oneshot::Sender<()>,
}

impl Forward {
    /// Forwards `127.0.0.1:PORT` of the namespace to the host, on a thread of its own, so that
    /// tests may block.
    ///
    /// # Errors
    /// Returns an error if the port is taken in the namespace, or the namespace cannot be entered.
    pub fn new(namespace: &Namespace, port: u16) -> anyhow::Result<Self> {
        let host = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // A socket stays in the namespace where it was created.
        let listener = namespace.run(|| TcpListener::bind(host))??;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = forward(listener, host) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { _stop: stop })
    }
}

async fn forward(listener: TcpListener, host: SocketAddr) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (mut inside, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A failed connection to the host closes the forwarded one.
            if let Ok(mut outside) = TcpStream::connect(host).await {
                let _ = copy_bidirectional(&mut inside, &mut outside).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::lab::Lab;

    #[test]
    fn a_host_port_is_reachable_while_it_is_forwarded() {
        let lab = Lab::new().unwrap();
        let host = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = host.local_addr().unwrap();
        let connect = || std::net::TcpStream::connect(address);
        assert!(lab.node().run(connect).unwrap().is_err());

        let forward = Forward::new(lab.node(), address.port()).unwrap();
        let mut inside = lab.node().run(connect).unwrap().unwrap();
        host.accept().unwrap().0.write_all(b"hello").unwrap();
        let mut heard = String::new();
        inside.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "hello");

        drop(forward);
        assert_eq!(inside.read(&mut [0]).unwrap(), 0);
    }
}
