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
        self.read_by(bounded).await
    }

    /// The same, each file read by `read`.
    async fn read_by(
        &self,
        read: impl AsyncFn(&Path) -> Result<Zeroizing<Vec<u8>>, String>,
    ) -> Result<(Vec<u8>, Zeroizing<Vec<u8>>), String> {
        let mut certificate = read(&self.certificate).await?;
        let mut key = read(&self.key).await?;
        for _ in 1..ATTEMPTS {
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
        // The results of the reads: the pair is swapped after the first one, or never.
        for (found, expected) in [
            (
                &["crt 1", "key 2", "crt 2", "key 2", "crt 2"][..],
                ("crt 2", "key 2"),
            ),
            (&["crt 1", "key 1", "crt 1"], ("crt 1", "key 1")),
            // It does not go on for ever.
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
        for (length, read) in [(0, 0), (MAX_PEM, MAX_PEM), (MAX_PEM + 9, MAX_PEM + 1)] {
            std::fs::write(&path, vec![b'x'; length]).unwrap();
            assert_eq!(bounded(&path).await.unwrap().len(), read);
        }
    }
}
