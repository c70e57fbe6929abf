//! The harness of all tests in this binary: a lab, a stand-in for the agent on the node, a stand-in
//! for the metadata service behind the node, and one backend for the rules.

use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rolegate_redirect::rules::{METADATA_V4, METADATA_V6, Spec};
use rolegate_redirect::{Backend, Redirect};
use rolegate_testkit::lab::{Lab, NODE_V4, NODE_V6, Namespace, Pod, PodLink};

/// The port of the agent's stand-in.
pub(crate) const PORT: u16 = 8181;
/// Timeout of a client that gets no response.
const PATIENCE: Duration = Duration::from_millis(800);
/// The response of the agent's stand-in.
pub(crate) const AGENT: &str = r#"{"hostIP":"10.0.0.1"}"#;
/// The response of the metadata service's stand-in.
pub(crate) const IMDS: &str = "the node's own metadata";

/// A web server that sends the same response to every request.
pub(crate) struct StandIn {
    stop: Arc<AtomicBool>,
    hits: Arc<AtomicUsize>,
    accepting: Option<JoinHandle<()>>,
}

impl StandIn {
    pub(crate) fn start(netns: &Namespace, port: u16, body: &'static str) -> anyhow::Result<Self> {
        let listener = netns.run(|| TcpListener::bind(("::", port)))??;
        listener.set_nonblocking(true)?;
        let (stop, hits) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let accepting = thread::spawn({
            let (stop, hits) = (Arc::clone(&stop), Arc::clone(&hits));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((stream, _)) = listener.accept() {
                        let hits = Arc::clone(&hits);
                        thread::spawn(move || serve(stream, body, &hits));
                    } else {
                        thread::sleep(Duration::from_millis(2));
                    }
                }
            }
        });
        Ok(Self {
            stop,
            hits,
            accepting: Some(accepting),
        })
    }

    /// Returns the number of requests answered so far.
    pub(crate) fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn serve(stream: TcpStream, body: &str, hits: &AtomicUsize) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(line) = lines.next().transpose()? {
        if line.is_empty() {
            hits.fetch_add(1, Ordering::SeqCst);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            (&stream).write_all(format!("{head}{body}").as_bytes())?;
        }
    }
    Ok(())
}

/// A client's open connection.
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) fn connect(
        netns: &Namespace,
        source: Option<IpAddr>,
        target: SocketAddr,
    ) -> io::Result<Self> {
        let stream = netns
            .run(|| connect_from(source, target))
            .map_err(io::Error::other)??;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request and returns the body of the response.
    pub(crate) fn ask(&mut self) -> io::Result<String> {
        self.0
            .get_mut()
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        String::from_utf8(body).map_err(io::Error::other)
    }
}

fn connect_from(source: Option<IpAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let Some(source) = source else {
        return TcpStream::connect_timeout(&target, PATIENCE);
    };
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket(family, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::new(source, 0))?;
    // The timeout for sending is also the timeout for connecting.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
    connect(&socket, &target)?;
    Ok(socket.into())
}

pub(crate) const METADATA: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(METADATA_V4), 80),
    SocketAddr::new(IpAddr::V6(METADATA_V6), 80),
];

/// The agent's own addresses.
pub(crate) const DIRECT: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(NODE_V4), PORT),
    SocketAddr::new(IpAddr::V6(NODE_V6), PORT),
];

/// Sends one request over a new connection.
pub(crate) fn fetch(netns: &Namespace, target: SocketAddr) -> io::Result<String> {
    Client::connect(netns, None, target)?.ask()
}

/// Runs a future in the node's namespace, on a separate runtime.
pub(crate) fn on<T: Send, F: Future<Output = T>>(
    netns: &Namespace,
    work: impl FnOnce() -> F + Send,
) -> T {
    netns
        .run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(work())
        })
        .unwrap()
}

pub(crate) struct RedirectHarness {
    pub(crate) lab: Lab,
    pub(crate) agent: Option<StandIn>,
    pub(crate) imds: StandIn,
    pub(crate) backend: Backend,
}

impl RedirectHarness {
    pub(crate) fn new(backend: Backend) -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let harness = Self {
            agent: Some(StandIn::start(lab.node(), PORT, AGENT)?),
            imds: StandIn::start(lab.imds(), 80, IMDS)?,
            backend,
            lab,
        };
        // As on any node, connections are tracked and established ones are accepted.
        harness.nft(
            "table inet tracking {
               chain forward {
                 type filter hook forward priority filter
                 ct state established,related accept
               }
             }
",
        )?;
        Ok(harness)
    }

    pub(crate) fn pod(&self) -> anyhow::Result<Pod> {
        self.lab.pod("10.1.0.5", PodLink::Veth)
    }

    pub(crate) fn redirect(&self, interface: &str) -> Redirect {
        let spec = Spec::new(
            Some(NODE_V4),
            Some(NODE_V6),
            PORT,
            interface.parse().unwrap(),
        );
        Redirect::new(self.backend, spec.unwrap())
    }

    pub(crate) fn apply(&self, interface: &str) -> anyhow::Result<Redirect> {
        let redirect = self.redirect(interface);
        on(self.lab.node(), || redirect.apply())?;
        Ok(redirect)
    }

    /// Runs nft in the node's namespace with rules of another program.
    pub(crate) fn nft(&self, rules: &str) -> anyhow::Result<()> {
        let file = std::env::temp_dir().join(format!("{}.nft", self.lab.node().name()));
        std::fs::write(&file, rules)?;
        let result = self.lab.node().exec(&format!("nft -f {}", file.display()));
        std::fs::remove_file(&file)?;
        result.map(|_| ())
    }

    /// Returns the program that the iptables backend uses.
    pub(crate) fn iptables(&self) -> Option<String> {
        match self.backend {
            Backend::Iptables(_) => Some(self.backend.to_string()),
            _ => None,
        }
    }

    /// Removes all rules of the backend's program, rolegate's and others.
    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        let node = self.lab.node();
        let Some(iptables) = self.iptables() else {
            return node.exec("nft flush ruleset").map(|_| ());
        };
        for program in [iptables.clone(), iptables.replace("iptables", "ip6tables")] {
            for table in ["filter", "nat", "raw"] {
                node.exec(&format!("{program} -w 5 -t {table} -F"))?;
            }
        }
        Ok(())
    }

    /// Returns all rules of the node, of all programs.
    pub(crate) fn all_rules(&self) -> anyhow::Result<String> {
        let mut all = String::new();
        for command in [
            "nft -s list ruleset",
            "iptables-legacy-save",
            "ip6tables-legacy-save",
            "ip rule",
            "ip -6 rule",
        ] {
            all.push_str(&self.lab.node().exec(command)?);
        }
        Ok(all
            .lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with(':'))
            .collect::<Vec<_>>()
            .join("\n"))
    }
}

/// Generates, from each function with a backend as its argument, a test for each backend.
macro_rules! for_each_backend {
    ($($name:ident),* $(,)?) => {
        mod nftables {
            use rolegate_redirect::Backend;
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name(Backend::Nftables) })*
        }
        mod iptables_nft {
            use rolegate_redirect::{Backend, Flavour};
            $(#[test] fn $name() -> anyhow::Result<()> {
                super::$name(Backend::Iptables(Flavour::Nft))
            })*
        }
        mod iptables_legacy {
            use rolegate_redirect::{Backend, Flavour};
            $(#[test] fn $name() -> anyhow::Result<()> {
                super::$name(Backend::Iptables(Flavour::Legacy))
            })*
        }
    };
}
pub(crate) use for_each_backend;
