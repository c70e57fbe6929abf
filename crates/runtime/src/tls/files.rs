//! Reads a key pair from two files every few seconds. Kubernetes updates mounted files by switching
//! symbolic links, which file events do not report reliably, so the content is compared.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

use super::pair::MAX_PEM_BYTES;
use super::store::CertificateStore;

/// Interval at which the files are read.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of attempts to read a pair that changes while it is read.
const MAX_ATTEMPTS: usize = 3;

/// The paths of a certificate and its key.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain as PEM, the leaf first.
    pub certificate: PathBuf,
    /// The private key as PEM.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Keeps `store` up to date with the files. Never returns.
    pub async fn follow(&self, store: &CertificateStore) {
        loop {
            self.offer(store).await;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Reads the files into `store`, which reports errors.
    pub async fn offer(&self, store: &CertificateStore) {
        match self.read().await {
            // The store has reported why it rejects a pair.
            Ok((certificate, key)) => drop(store.set(&certificate, &key)),
            Err(why) => store.report_error(why),
        }
    }

    /// Reads both files, as of one moment as far as can be detected.
    pub(super) async fn read(&self) -> Result<(Vec<u8>, Zeroizing<Vec<u8>>), String> {
        self.read_by(bounded).await
    }

    /// Reads both files with `read`.
    async fn read_by(
        &self,
        read: impl AsyncFn(&Path) -> Result<Zeroizing<Vec<u8>>, String>,
    ) -> Result<(Vec<u8>, Zeroizing<Vec<u8>>), String> {
        let mut certificate = read(&self.certificate).await?;
        let mut key = read(&self.key).await?;
        for _ in 1..MAX_ATTEMPTS {
            let again = read(&self.certificate).await?;
            if again == certificate {
                break;
            }
            certificate = again;
            key = read(&self.key).await?;
        }
        Ok((certificate.to_vec(), key))
    }
}

pub(super) async fn bounded(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let read = async {
        // Allocated at full size: growing would leave copies of the key behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_PEM_BYTES + 1));
        let file = tokio::fs::File::open(path).await?;
        // The parser rejects a file with this extra byte as too large.
        file.take(MAX_PEM_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .await?;
        Ok(bytes)
    };
    read.await
        .map_err(|error: io::Error| format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn rule_11_a_pair_that_is_swapped_while_it_is_read_is_of_one_moment() {
        let files = TlsFiles {
            certificate: "tls.crt".into(),
            key: "tls.key".into(),
        };
        // The results of the reads: the pair is replaced after the first one, or never.
        for (found, expected) in [
            (
                &["crt 1", "key 2", "crt 2", "key 2", "crt 2"][..],
                ("crt 2", "key 2"),
            ),
            (&["crt 1", "key 1", "crt 1"], ("crt 1", "key 1")),
            // The attempts are limited.
            (
                &["crt 1", "key 1", "crt 2", "key 2", "crt 3", "key 3"],
                ("crt 3", "key 3"),
            ),
        ] {
            let mut contents = found.iter();
            let next = RefCell::new(move || contents.next().unwrap().as_bytes().to_vec());
            let read = async |_: &Path| Ok(Zeroizing::new(next.borrow_mut()()));
            let (certificate, key) = files.read_by(read).await.unwrap();
            let pair = (&*certificate, &**key);
            assert_eq!(pair, (expected.0.as_bytes(), expected.1.as_bytes()));
        }
    }

    #[tokio::test]
    async fn a_file_is_read_to_one_byte_over_the_most_that_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tls.crt");
        for (length, read) in [
            (0, 0),
            (MAX_PEM_BYTES, MAX_PEM_BYTES),
            (MAX_PEM_BYTES + 9, MAX_PEM_BYTES + 1),
        ] {
            std::fs::write(&path, vec![b'x'; length]).unwrap();
            assert_eq!(bounded(&path).await.unwrap().len(), read);
        }
    }
}
