//! Real handshakes, with certificates issued here.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::clock::Clock;
use crate::drain::Outcome;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::serve::{Limits, listen, serve_tls};
use crate::shares::Eviction;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const DEADLINE: Duration = Duration::from_secs(60);

/// A self-signed certificate for localhost with its key, as PEM.
struct TestPair {
    certificate: String,
    key: String,
}

fn make(year_of_end: i32) -> TestPair {
    make_with(KeyPair::generate().unwrap(), year_of_end)
}

fn make_with(key: KeyPair, year_of_end: i32) -> TestPair {
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(year_of_end, 1, 1);
    TestPair {
        certificate: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

impl TestPair {
    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }
}

struct Server {
    address: SocketAddr,
    drain: Drain,
    store: Arc<CertificateStore>,
    readiness: Readiness,
}

fn store(readiness: &Readiness) -> Arc<CertificateStore> {
    let condition = readiness.condition("certificate");
    Arc::new(CertificateStore::new("test", Clock::system(), condition))
}

fn start(limits: Limits) -> Server {
    let readiness = Readiness::new();
    let store = store(&readiness);
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let drain = Drain::new();
    let tls = ServerTls::new(store.clone()).unwrap();
    let answers = |_, _| {
        let service = service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        });
        Some((service, Eviction::never()))
    };
    tokio::spawn(serve_tls(listener, limits, drain.clone(), tls, answers));
    Server {
        address,
        drain,
        store,
        readiness,
    }
}

impl Server {
    fn serve(&self, made: &TestPair) {
        self.store
            .set(made.certificate.as_bytes(), made.key.as_bytes())
            .unwrap();
    }

    /// Performs a handshake of a client that trusts only these.
    async fn connect(&self, trusted: &[&TestPair]) -> io::Result<TlsStream<TcpStream>> {
        connect(self.address, trusted.iter().map(|made| made.der())).await
    }
}

async fn connect(
    address: SocketAddr,
    trusted: impl IntoIterator<Item = CertificateDer<'static>>,
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(certificate).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let connected = tokio::time::timeout(DEADLINE, connected).await;
    connected.expect("the handshake never ends")
}

async fn ask(stream: &mut TlsStream<TcpStream>) -> io::Result<String> {
    stream.write_all(REQUEST).await?;
    let mut bytes = [0; 1024];
    let count = tokio::time::timeout(DEADLINE, stream.read(&mut bytes)).await;
    let count = count.expect("no answer comes")?;
    Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
}

fn served(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    let (_, session) = stream.get_ref();
    session.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_11_new_handshakes_get_the_new_certificate_and_open_connections_live_on() {
    let server = start(Limits::default());
    let all: Vec<TestPair> = (0..6).map(|_| make(2999)).collect();
    server.serve(&all[0]);
    let mut first = server.connect(&[&all[0]]).await.unwrap();
    assert!(ask(&mut first).await.unwrap().ends_with("hello"));

    // Clients connect all the time; each must be served.
    let stop = tokio_util::sync::CancellationToken::new();
    let trusted: Vec<_> = all.iter().map(TestPair::der).collect();
    let clients = [(); 4].map(|()| {
        let (stop, trusted, address) = (stop.clone(), trusted.clone(), server.address);
        tokio::spawn(async move {
            let mut seen = std::collections::HashSet::new();
            while !stop.is_cancelled() {
                let mut stream = connect(address, trusted.clone()).await.unwrap();
                assert!(ask(&mut stream).await.unwrap().ends_with("hello"));
                seen.insert(served(&stream).to_vec());
            }
            seen
        })
    });
    for made in &all[1..] {
        server.serve(made);
        let stream = server.connect(&[made]).await.unwrap();
        assert_eq!(served(&stream), made.der());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.cancel();
    let mut seen = std::collections::HashSet::new();
    for client in clients {
        seen.extend(client.await.unwrap());
    }
    assert!(
        seen.len() > 1,
        "no client connected while certificates changed"
    );
    assert!(ask(&mut first).await.unwrap().ends_with("hello"));
}

#[tokio::test]
async fn rule_11_a_broken_pair_keeps_the_last_good_one_and_says_so() {
    let server = start(Limits::default());
    let (good, other, ended) = (make(2999), make(2999), make(2001));
    server.serve(&good);
    let long = good.certificate.repeat(17);
    let huge = " ".repeat(MAX_PEM_BYTES + 1);
    let cut = &good.key[..good.key.len() / 2];
    let broken = [
        (&*good.certificate, &*other.key, PairError::Mismatch),
        (&*other.certificate, &*good.key, PairError::Mismatch),
        (&*good.certificate, &*good.certificate, PairError::NoKey),
        (&*good.certificate, "", PairError::NoKey),
        (&*good.certificate, cut, PairError::Key),
        ("", &*good.key, PairError::NoCertificate),
        ("nonsense", &*good.key, PairError::NoCertificate),
        (&*good.key, &*good.key, PairError::NoCertificate),
        (&*long, &*good.key, PairError::LongChain),
        (&*huge, &*good.key, PairError::TooLarge),
        (&*good.certificate, &*huge, PairError::TooLarge),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &*good.key,
            PairError::Certificate,
        ),
        (
            "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n",
            &*good.key,
            PairError::Certificate,
        ),
        (
            &*ended.certificate,
            &*ended.key,
            PairError::Ended("2001-01-01T00:00:00Z".parse().unwrap()),
        ),
    ];
    for (certificate, key, expected) in broken {
        let set = server.store.set(certificate.as_bytes(), key.as_bytes());
        assert_eq!(set, Err(expected.clone()));
        let report = server.readiness.report();
        assert!(report.ready, "{report:?}");
        let note = &report.noted["certificate"];
        assert!(note.starts_with(&expected.to_string()), "{note}");
        let stream = server.connect(&[&good]).await.unwrap();
        assert_eq!(served(&stream), good.der());
    }
    server.serve(&good);
    assert_eq!(server.readiness.report().ok, ["certificate"]);
}

#[tokio::test]
async fn rule_11_without_a_certificate_no_handshake_succeeds_and_nobody_is_ready() {
    let server = start(Limits::default());
    let made = make(2999);
    assert!(server.connect(&[&made]).await.is_err());
    let report = server.readiness.report();
    assert_eq!(
        report.failing["certificate"],
        "no certificate is loaded yet"
    );
    let _ = server.store.set(b"", made.key.as_bytes());
    let report = server.readiness.report();
    assert!(report.failing["certificate"].contains("BEGIN CERTIFICATE"));
    server.serve(&made);
    assert!(server.connect(&[&made]).await.is_ok());
    assert!(server.readiness.is_ready());
}

#[tokio::test]
async fn rule_11_files_are_followed_as_kubernetes_swaps_them() {
    let readiness = Readiness::new();
    let store = store(&readiness);
    let dir = tempfile::tempdir().unwrap();
    let write = |version: &str, made: &TestPair| {
        let folder = dir.path().join(version);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("tls.crt"), &made.certificate).unwrap();
        std::fs::write(folder.join("tls.key"), &made.key).unwrap();
        let link = dir.path().join("..new");
        std::os::unix::fs::symlink(version, &link).unwrap();
        std::fs::rename(&link, dir.path().join("..data")).unwrap();
    };
    let files = TlsFiles {
        certificate: dir.path().join("tls.crt"),
        key: dir.path().join("tls.key"),
    };
    files.offer(&store).await;
    let why = &readiness.report().failing["certificate"];
    assert!(why.contains("cannot read"), "{why}");

    for name in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), dir.path().join(name)).unwrap();
    }
    let left = |store: &CertificateStore| store.left().unwrap().as_hours();
    write("one", &make(2900));
    files.offer(&store).await;
    let first = left(&store);
    assert!(readiness.is_ready());
    write("two", &make(2950));
    files.offer(&store).await;
    assert!(left(&store) > first);

    std::fs::write(dir.path().join("two/tls.key"), "half a key").unwrap();
    files.offer(&store).await;
    assert!(left(&store) > first);
    let note = &readiness.report().noted["certificate"];
    assert!(
        note.contains("the previous certificate is served until 2950"),
        "{note}"
    );
}

#[tokio::test(start_paused = true)]
async fn rule_11_the_expiration_of_a_certificate_is_a_metric_and_its_end_is_told() {
    let start: Timestamp = "2998-12-31T00:00:00Z".parse().unwrap();
    let readiness = Readiness::new();
    let condition = readiness.condition("certificate");
    let store = CertificateStore::new("webhook", Clock::tokio(start), condition);
    let store = Arc::new(store);
    let mut metrics = Metrics::new();
    ExpiryCollector::register(metrics.ours(), vec![store.clone()]);
    let expiration = || {
        let text = metrics.encode().unwrap();
        let line = "rolegate_certificate_expiration_timestamp_seconds{certificate=\"webhook\"} ";
        let at = text.find(line)? + line.len();
        let value = text[at..].lines().next()?;
        Some(value.parse::<f64>().unwrap())
    };
    assert_eq!(expiration(), None);
    let made = make(2999);
    store
        .set(made.certificate.as_bytes(), made.key.as_bytes())
        .unwrap();
    let end = start.as_second() as f64 + 86_400.0;
    assert!((expiration().unwrap() - end).abs() < 60.0);
    store.check_expiry();
    assert!(readiness.is_ready());

    tokio::time::advance(Duration::from_secs(2 * 86_400)).await;
    store.check_expiry();
    let why = &readiness.report().failing["certificate"];
    assert!(why.contains("expired at 2999-01-01"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn expirations_of_certificates_in_files_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let start: Timestamp = "2998-12-31T00:00:00Z".parse().unwrap();
    let files = TlsFiles {
        certificate: path("chain.pem"),
        key: path("none.key"),
    };
    let pair = CertificateFile::of_pair("agent", &files);
    let ca = CertificateFile::of_authorities("ca", path("chain.pem"));
    assert_eq!((pair.name(), ca.name()), ("agent", "ca"));
    let look = async || {
        pair.update().await;
        ca.update().await;
        [pair.expires_at(), ca.expires_at()]
            .map(|end| end.map(|end| end.duration_since(start).as_hours() / 24))
    };
    assert_eq!(look().await, [None, None]);
    // The leaf is the first certificate; among authorities the last to expire counts.
    let both = make(2999).certificate + &make(3000).certificate;
    std::fs::write(&files.certificate, both).unwrap();
    assert_eq!(look().await, [Some(1), Some(366)]);
    // A certificate that never expires, by RFC 5280.
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    let never = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    std::fs::write(&files.certificate, never.pem()).unwrap();
    assert!(look().await[0].unwrap() > 7000 * 365);
    std::fs::write(&files.certificate, "no certificate").unwrap();
    assert_eq!(look().await, [None, None]);
}

#[tokio::test]
async fn rule_06_neither_errors_nor_debug_show_the_key() {
    let readiness = Readiness::new();
    let store = store(&readiness);
    let made = make(2999);
    let (certificate, key) = (made.certificate.as_bytes(), made.key.as_bytes());
    store.set(certificate, key).unwrap();
    let mut text = format!("{store:?}{:?}", ServerTls::new(store.clone()).unwrap());
    for line in made.key.lines().skip(1) {
        // A key that lost its first line, or whose first line is the key.
        let headless = format!("-----BEGIN {line}\n{}", made.key);
        for broken in [headless.as_str(), line] {
            if let Err(error) = store.set(certificate, broken.as_bytes()) {
                text += &format!("{error} {error:?}");
            }
        }
    }
    text += &readiness.report().to_text(true);
    for line in made.key.lines().filter(|line| !line.starts_with('-')) {
        assert!(!text.contains(line), "{text}");
    }
}

#[tokio::test]
async fn rule_09_clients_that_say_nothing_stall_nobody_and_are_cut_off() {
    let limits = Limits {
        connections: 8,
        ..Limits::default()
    };
    let server = start(limits);
    let made = make(2999);
    server.serve(&made);
    let mut silent = Vec::new();
    for _ in 0..7 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    // Half a message is not an answer either.
    let [half, ..] = &mut silent[..] else {
        unreachable!()
    };
    half.write_all(b"\x16\x03\x01\x02").await.unwrap();
    let mut stream = server.connect(&[&made]).await.unwrap();
    assert!(ask(&mut stream).await.unwrap().ends_with("hello"));

    // All permits are taken, and released only when silent connections are closed.
    let mut late = server.connect(&[&made]).await.unwrap();
    assert!(ask(&mut late).await.unwrap().ends_with("hello"));
    for mut stream in silent {
        let mut bytes = Vec::new();
        let end = stream.read_to_end(&mut bytes);
        let end = tokio::time::timeout(DEADLINE, end).await;
        let _ = end.expect("the connection stays open");
    }
}

#[tokio::test]
async fn the_end_does_not_wait_for_handshakes_that_never_come() {
    let server = start(Limits::default());
    let made = make(2999);
    server.serve(&made);
    let mut open = server.connect(&[&made]).await.unwrap();
    assert!(ask(&mut open).await.unwrap().ends_with("hello"));
    let _silent = TcpStream::connect(server.address).await.unwrap();
    // Accepted in order: a later connection has been served.
    let mut later = server.connect(&[&made]).await.unwrap();
    assert!(ask(&mut later).await.unwrap().ends_with("hello"));
    let outcome = server.drain.drain(Duration::from_secs(4)).await;
    assert_eq!(outcome, Outcome::Graceful);
}

#[tokio::test]
async fn only_http_1_is_offered_and_no_session_is_resumed() {
    let server = start(Limits::default());
    let made = make(2999);
    server.serve(&made);
    let mut stream = server.connect(&[&made]).await.unwrap();
    assert!(ask(&mut stream).await.unwrap().ends_with("hello"));
    let (_, session) = stream.get_ref();
    assert_eq!(session.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(session.tls13_tickets_received(), 0);
}

#[test]
fn usual_kinds_of_keys_are_served() {
    let readiness = Readiness::new();
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let made = make_with(KeyPair::generate_for(algorithm).unwrap(), 2999);
        let set = store(&readiness).set(made.certificate.as_bytes(), made.key.as_bytes());
        assert_eq!(set, Ok(()), "{algorithm:?}");
    }
}

#[test]
fn a_pair_is_checked_as_it_would_be_served() {
    let (one, other, ended) = (make(2999), make(2999), make(2001));
    let check = |certificate: &str, key: &str| {
        check_pair(certificate.as_bytes(), key.as_bytes(), Timestamp::now())
    };
    assert_eq!(check(&one.certificate, &one.key), Ok(()));
    assert_eq!(
        check(&one.certificate, &other.key),
        Err(PairError::Mismatch)
    );
    assert_eq!(check("", &one.key), Err(PairError::NoCertificate));
    let over = check(&ended.certificate, &ended.key);
    assert!(matches!(over, Err(PairError::Ended(_))), "{over:?}");
    // Text around the PEM is skipped, up to the size limit.
    let padded = |length: usize| format!("{}{}", "\n".repeat(length - one.key.len()), one.key);
    assert_eq!(check(&one.certificate, &padded(MAX_PEM_BYTES)), Ok(()));
    let long = check(&one.certificate, &padded(MAX_PEM_BYTES + 1));
    assert_eq!(long, Err(PairError::TooLarge));
    let padded = |length: usize| {
        let text = &one.certificate;
        format!("{}{text}", "\n".repeat(length - text.len()))
    };
    assert_eq!(check(&padded(MAX_PEM_BYTES), &one.key), Ok(()));
    let long = check(&padded(MAX_PEM_BYTES + 1), &one.key);
    assert_eq!(long, Err(PairError::TooLarge));
}

#[tokio::test(start_paused = true)]
async fn rule_11_files_are_read_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let files = TlsFiles {
        certificate: folder.path().join("tls.crt"),
        key: folder.path().join("tls.key"),
    };
    let write = |made: &TestPair| {
        std::fs::write(&files.certificate, &made.certificate).unwrap();
        std::fs::write(&files.key, &made.key).unwrap();
    };
    let readiness = Readiness::new();
    let store = store(&readiness);
    let age = CertificateFile::of_pair("file", &files);
    write(&make(2030));
    let following = async { tokio::join!(files.follow(&store), age.follow()) };
    let renewed = async {
        // The clock advances when all tasks are idle.
        let end_of =
            |year: i32| -> Timestamp { format!("{year}-01-01T00:00:00Z").parse().unwrap() };
        for (year, next) in [(2030, Some(make(2040))), (2040, None)] {
            let left = end_of(year).duration_since(Timestamp::now());
            let is = |it: Option<jiff::SignedDuration>| {
                it.is_some_and(|it| (it - left).abs() < jiff::SignedDuration::from_hours(24))
            };
            while !is(store.left())
                || !is(age
                    .expires_at()
                    .map(|end| end.duration_since(Timestamp::now())))
            {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            next.iter().for_each(write);
        }
    };
    tokio::select! {
        _ = following => {}
        done = tokio::time::timeout(Duration::from_secs(3600), renewed) => {
            done.expect("the files are not read again");
        }
    }
}
