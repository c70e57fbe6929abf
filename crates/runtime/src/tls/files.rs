//! A pair in two files, looked at every few seconds. What Kubernetes mounts is swapped by symlinks,
//! of which file events tell little; the content tells all.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

use super::pair::MAX_PEM;
use super::store::CertificateStore;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How often a pair is read that changes while it is read.
const ATTEMPTS: usize = 3;

/// Where a certificate and its key are.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain as PEM, the leaf first.
    pub certificate: PathBuf,
    /// The private key as PEM.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Keeps `store` up to the files. Never returns.
    pub async fn follow(&self, store: &CertificateStore) {
        loop {
            self.offer(store).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Puts what the files hold now into `store`, which says what is wrong with it.
    pub async fn offer(&self, store: &CertificateStore) {
        match self.read().await {
            // The store has said why it refuses a pair.
            Ok((certificate, key)) => drop(store.set(&certificate, &key)),
            Err(why) => store.complain(why),
        }
    }

    /// Both files, of one moment as far as can be told.
    pub(super) async fn read(&self) -> Result<(Vec<u8>, Zeroizing<Vec<u8>>), String> {
        let mut certificate = bounded(&self.certificate).await?;
        let mut key = bounded(&self.key).await?;
        for _ in 1..ATTEMPTS {
            let again = bounded(&self.certificate).await?;
            if again == certificate {
                break;
            }
            certificate = again;
            key = bounded(&self.key).await?;
        }
        Ok((certificate.to_vec(), key))
    }
}

pub(super) async fn bounded(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let read = async {
        // Room for all of it from the start: growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_PEM + 1));
        let file = tokio::fs::File::open(path).await?;
        // One byte too many is refused by whoever parses it.
        file.take(MAX_PEM as u64 + 1)
            .read_to_end(&mut bytes)
            .await?;
        Ok(bytes)
    };
    read.await
        .map_err(|error: io::Error| format!("cannot read {}: {error}", path.display()))
}
