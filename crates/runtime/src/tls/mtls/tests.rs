//! Both ends over real sockets, with certificates issued here.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::readiness::Readiness;

const DAY: u64 = 86_400;

struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { params, key, pem }
}

impl Authority {
    /// Issues a certificate and its key, valid from this day for this number of days.
    fn issue(&self, name: &str, from: u64, days: u64) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let uri = format!("rolegate://node/{name}");
        params
            .subject_alt_names
            .push(SanType::URI(uri.try_into().unwrap()));
        let now = u64::try_from(Timestamp::now().as_second()).unwrap();
        let begins = now + from * DAY - 60;
        let time = |second| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(second);
        params.not_before = time(begins);
        params.not_after = time(begins + days * DAY);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let pem = params.signed_by(&key, &issuer).unwrap().pem();
        (pem, key.serialize_pem())
    }
}

struct Fixture {
    folder: TempDir,
    store: Arc<CertificateStore>,
    authorities: Arc<ClientAuthorities>,
    tls: MutualTls,
    clock: Clock,
    listener: TcpListener,
}

impl Fixture {
    async fn new(clock: Clock) -> Self {
        let condition = Readiness::new().condition("certificate");
        let store = Arc::new(CertificateStore::new("test", clock.clone(), condition));
        let authorities = Arc::new(ClientAuthorities::default());
        Self {
            folder: TempDir::new().unwrap(),
            tls: MutualTls::new(store.clone(), authorities.clone(), clock.clone()).unwrap(),
            store,
            authorities,
            clock,
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn serve(&self, (certificate, key): &(String, String)) {
        self.store
            .set(certificate.as_bytes(), key.as_bytes())
            .unwrap();
    }

    /// Returns a client that trusts `ca.pem`, and presents `client.*` if `shows` is set.
    fn client(&self, shows: bool) -> ClientTls {
        ClientTls {
            ca: self.path("ca.pem"),
            pair: shows.then(|| TlsFiles {
                certificate: self.path("client.pem"),
                key: self.path("client.key"),
            }),
            clock: self.clock.clone(),
        }
    }

    fn show(&self, (certificate, key): &(String, String)) {
        self.write("client.pem", certificate);
        self.write("client.key", key);
    }

    /// Performs a whole handshake and returns what the server learns. A client notices a rejection
    /// only when it reads.
    async fn meet(&self, client: &ClientTls) -> Result<ClientNames, String> {
        let address = self.listener.local_addr().unwrap();
        let dial = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let mut stream = client
                .connect(stream, "localhost")
                .await
                .map_err(|error| error.to_string())?;
            let mut byte = [0];
            let read = stream.read_exact(&mut byte).await;
            read.map(|_| ()).map_err(|error| error.to_string())
        };
        let accept = async {
            let (stream, _) = self.listener.accept().await.unwrap();
            let (mut stream, names) = self.tls.accept(stream).await?;
            stream.write_all(b"!").await.ok()?;
            Some(names)
        };
        let (dialled, names) = tokio::join!(dial, accept);
        dialled?;
        names.ok_or_else(|| "the server refused".into())
    }
}

#[tokio::test]
async fn a_rotated_authority_is_followed_by_both_ends() {
    let fixture = Fixture::new(Clock::system()).await;
    let (old, new) = (authority(), authority());
    fixture.write("ca.pem", &old.pem);
    fixture.authorities.set(old.pem.as_bytes()).unwrap();
    fixture.serve(&old.issue("broker", 0, 30));
    fixture.show(&old.issue("node-1", 0, 30));
    let client = fixture.client(true);
    let names = fixture.meet(&client).await.unwrap();
    assert_eq!(names.uris, ["rolegate://node/node-1"]);
    assert!(names.until.is_some());

    // Both authorities are trusted first, then certificates are replaced, then the old one is
    // removed.
    fixture.write("ca.pem", &format!("{}{}", old.pem, new.pem));
    let both = format!("{}{}", old.pem, new.pem);
    fixture.authorities.set(both.as_bytes()).unwrap();
    fixture.meet(&client).await.unwrap();
    fixture.serve(&new.issue("broker", 0, 30));
    fixture.meet(&client).await.unwrap();
    fixture.show(&new.issue("node-1", 0, 30));
    fixture.meet(&client).await.unwrap();
    fixture.write("ca.pem", &new.pem);
    fixture.authorities.set(new.pem.as_bytes()).unwrap();
    fixture.meet(&client).await.unwrap();

    // Certificates of the old authority are not trusted any more.
    fixture.show(&old.issue("node-1", 0, 30));
    assert!(fixture.meet(&client).await.is_err());
    fixture.serve(&old.issue("broker", 0, 30));
    assert!(fixture.meet(&fixture.client(false)).await.is_err());
    // A file without authorities changes nothing.
    assert!(fixture.authorities.set(b"nothing").is_err());
    fixture.serve(&new.issue("broker", 0, 30));
    fixture.show(&new.issue("node-1", 0, 30));
    fixture.meet(&client).await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_never_ends_has_an_end() {
    let fixture = Fixture::new(Clock::system()).await;
    let authority = authority();
    fixture.write("ca.pem", &authority.pem);
    fixture.authorities.set(authority.pem.as_bytes()).unwrap();
    fixture.serve(&authority.issue("broker", 0, 30));
    // The last possible expiry of a certificate, which is later than any `Timestamp`.
    let now = u64::try_from(Timestamp::now().as_second()).unwrap();
    fixture.show(&authority.issue("node-1", 0, (253_402_300_799 - now) / DAY));
    let names = fixture.meet(&fixture.client(true)).await.unwrap();
    assert_eq!(names.until, Some(Timestamp::MAX));
}

#[tokio::test]
async fn rule_08_certificates_of_others_or_of_another_time_are_refused() {
    let fixture = Fixture::new(Clock::system()).await;
    let ours = authority();
    fixture.write("ca.pem", &ours.pem);
    fixture.serve(&ours.issue("broker", 0, 30));
    fixture.authorities.set(ours.pem.as_bytes()).unwrap();
    let client = fixture.client(true);
    for refused in [
        authority().issue("node-1", 0, 30),
        // Expired, and not valid yet.
        ours.issue("node-1", 0, 0),
        ours.issue("node-1", 7, 30),
    ] {
        fixture.show(&refused);
        assert!(fixture.meet(&client).await.is_err());
    }
    // Without a certificate there are no names.
    let names = fixture.meet(&fixture.client(false)).await.unwrap();
    assert_eq!(names, ClientNames::default());
    // Without authorities no certificate is requested, and a presented one is ignored.
    let fixture = Fixture::new(Clock::system()).await;
    fixture.write("ca.pem", &ours.pem);
    fixture.serve(&ours.issue("broker", 0, 30));
    fixture.show(&ours.issue("node-1", 0, 30));
    let names = fixture.meet(&fixture.client(true)).await.unwrap();
    assert_eq!(names, ClientNames::default());
}

#[tokio::test]
async fn only_tls_13_is_spoken() {
    let fixture = Fixture::new(Clock::system()).await;
    let ours = authority();
    fixture.serve(&ours.issue("broker", 0, 30));
    let mut trusted = RootCertStore::empty();
    trusted
        .add(CertificateDer::from_pem_slice(ours.pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let speak = async |version: &'static rustls::SupportedProtocolVersion| {
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(trusted.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.into()];
        let address = fixture.listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let accept = async {
            let (stream, _) = fixture.listener.accept().await.unwrap();
            fixture.tls.accept(stream).await.is_some()
        };
        let (dialled, accepted) = tokio::join!(connector.connect(name, stream), accept);
        dialled.is_ok() && accepted
    };
    assert!(speak(&rustls::version::TLS13).await);
    assert!(!speak(&rustls::version::TLS12).await);
}

#[tokio::test]
async fn no_certificate_that_is_renewed_in_its_file_is_an_outage() {
    let (clock, hand) = Clock::ahead();
    let fixture = Fixture::new(clock).await;
    let ours = authority();
    fixture.write("ca.pem", &ours.pem);
    fixture.authorities.set(ours.pem.as_bytes()).unwrap();
    let client = fixture.client(true);
    for month in 0..4 {
        hand.send_replace(Duration::from_secs(month * 20 * DAY));
        if month > 0 {
            // The previous ones have expired, or will before the next.
            hand.send_replace(Duration::from_secs((month * 20 + 11) * DAY));
            assert!(fixture.meet(&client).await.is_err());
            hand.send_replace(Duration::from_secs(month * 20 * DAY));
        }
        fixture.serve(&ours.issue("broker", month * 20, 30));
        fixture.show(&ours.issue("node-1", month * 20, 30));
        fixture.meet(&client).await.unwrap();
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let fixture = Fixture::new(Clock::system()).await;
    let ours = authority();
    fixture.serve(&ours.issue("broker", 0, 30));
    let client = fixture.client(true);
    let fails = async || fixture.meet_alone(&client).await;
    assert!(fails().await.contains("ca.pem"));
    fixture.write("ca.pem", "nothing");
    assert!(fails().await.contains("ca.pem"));
    fixture.write("ca.pem", &ours.pem);
    assert!(fails().await.contains("client."));
    let (certificate, _) = ours.issue("node-1", 0, 30);
    fixture.show(&(certificate, "very-secret".into()));
    let sentence = fails().await;
    assert!(
        sentence.contains("client.key") && !sentence.contains("very-secret"),
        "{sentence}"
    );
}

impl Fixture {
    /// Returns the error before a handshake even begins.
    async fn meet_alone(&self, client: &ClientTls) -> String {
        let address = self.listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let connected = client.connect(stream, "localhost").await;
        connected.map(|_| ()).unwrap_err().to_string()
    }
}
