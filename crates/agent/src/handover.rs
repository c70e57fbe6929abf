//! An upgrade without a gap: a new agent takes the listening sockets and the key of metadata
//! tokens from the old one over a Unix socket, then the old one drains.
//!
//! Sharing a port (`SO_REUSEPORT`) would reset what waits in the old socket's queue; a socket
//! that is handed on keeps its queue. The Unix socket lies in a folder that only root enters,
//! both ends check that the other runs as the same user, and its name holds the port and the
//! network namespace, so that agents which are not each other's successors never meet.
//!
//! Message of the old agent: one byte of version, 32 bytes of key, and with it the descriptors of
//! the pods' and the operators' listening sockets. The new agent answers one byte when it listens;
//! if it does not, the old one goes on.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use zeroize::Zeroizing;

use crate::token::{KEY_LENGTH, TokenKey};

const VERSION: u8 = 1;
const TAKEN: u8 = 1;
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// A version byte and a key.
const MESSAGE: usize = 1 + KEY_LENGTH;
/// The pods' and the operators' listening sockets.
const SOCKETS: usize = 2;

/// Why sockets could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The folder cannot be made, or others may enter it.
    #[error("the runtime folder {path} cannot be used: {why}; give another with --runtime-dir")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The other side broke off or runs as somebody else.
    #[error("handing over failed: {0}")]
    Io(#[from] io::Error),
    /// The other side speaks another version.
    #[error("the other agent hands over in a way that this version does not know")]
    Unknown,
}

/// What the old agent leaves.
#[derive(Debug)]
pub struct Estate {
    /// The pods' listening socket.
    pub pods: OwnedFd,
    /// The operators' listening socket.
    pub admin: OwnedFd,
    /// The key of metadata tokens, so that tokens stay good.
    pub tokens: TokenKey,
    /// To be confirmed when the sockets are listened on.
    pub receipt: Receipt,
}

/// What the old agent waits for before it drains.
#[derive(Debug)]
pub struct Receipt(UnixStream);

impl Receipt {
    /// Tells the old agent that its sockets are listened on.
    ///
    /// # Errors
    /// [`HandoverError::Io`]: the old agent is gone, which changes nothing.
    pub async fn confirm(mut self) -> Result<(), HandoverError> {
        Ok(self.0.write_all(&[TAKEN]).await?)
    }
}

/// The place of a node's Unix socket.
#[derive(Debug, Clone)]
pub struct Place(PathBuf);

impl Place {
    /// The socket of agents on `port` of this network namespace, in `folder`, which is made and
    /// closed to others.
    ///
    /// # Errors
    /// [`HandoverError::Folder`].
    pub fn new(folder: &Path, port: u16) -> Result<Self, HandoverError> {
        let unusable = |why: String| HandoverError::Folder {
            path: folder.to_owned(),
            why,
        };
        let failed = |error: io::Error| unusable(error.to_string());
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed)?;
        let found = std::fs::symlink_metadata(folder).map_err(failed)?;
        if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
            return Err(unusable("it is not a folder of our own".into()));
        }
        if found.mode() & 0o077 != 0 {
            let closed = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(folder, closed).map_err(failed)?;
        }
        let namespace = std::fs::metadata("/proc/self/ns/net")
            .map_err(failed)?
            .ino();
        Ok(Self(folder.join(format!("agent-{port}-{namespace}.sock"))))
    }

    /// Whether an agent listens here.
    pub async fn is_taken(&self) -> bool {
        UnixStream::connect(&self.0).await.is_ok()
    }

    /// Takes the sockets of the agent that runs now; `None` where none does.
    ///
    /// # Errors
    /// [`HandoverError`] where one runs and does not hand over.
    pub async fn take(&self) -> Result<Option<Estate>, HandoverError> {
        let stream = match UnixStream::connect(&self.0).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        check_peer(&stream)?;
        let received = stream.async_io(Interest::READABLE, || receive(stream.as_fd()));
        let (key, sockets) = within(received).await???;
        let mut sockets = sockets.into_iter();
        let (Some(pods), Some(admin)) = (sockets.next(), sockets.next()) else {
            return Err(HandoverError::Unknown);
        };
        Ok(Some(Estate {
            pods,
            admin,
            tokens: TokenKey::from_bytes(key),
            receipt: Receipt(stream),
        }))
    }

    /// Waits for the next agent and hands it the sockets; returns when it has taken them.
    ///
    /// # Errors
    /// [`HandoverError::Io`] when the Unix socket cannot be opened.
    pub async fn offer(
        &self,
        pods: BorrowedFd<'_>,
        admin: BorrowedFd<'_>,
        tokens: &TokenKey,
    ) -> Result<(), HandoverError> {
        // What lies there is left over: a living agent would have handed over.
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let listener = UnixListener::bind(&self.0)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            let handed = async {
                check_peer(&stream)?;
                stream
                    .async_io(Interest::WRITABLE, || {
                        send(stream.as_fd(), &[pods, admin], tokens)
                    })
                    .await?;
                within(stream.read_u8()).await?
            };
            match handed.await {
                Ok(TAKEN) => return Ok(()),
                Ok(_) => {
                    tracing::warn!("another agent asked for our sockets and did not take them")
                }
                Err(error) => {
                    tracing::warn!(%error, "another agent asked for our sockets and broke off");
                }
            }
        }
    }
}

async fn within<T>(wait: impl Future<Output = T>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, wait)
        .await
        .map_err(|_| io::ErrorKind::TimedOut.into())
}

fn check_peer(stream: &UnixStream) -> io::Result<()> {
    if stream.peer_cred()?.uid() == rustix::process::geteuid().as_raw() {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

fn send(stream: BorrowedFd<'_>, sockets: &[BorrowedFd<'_>], tokens: &TokenKey) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts = [
        IoSlice::new(&[VERSION]),
        IoSlice::new(tokens.bytes().as_ref()),
    ];
    let sent = rustix::net::sendmsg(stream, &parts, &mut ancillary, SendFlags::NOSIGNAL)?;
    // Far below any socket buffer, it goes at once or not at all.
    if sent == MESSAGE {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

type Received = Result<(Zeroizing<[u8; KEY_LENGTH]>, Vec<OwnedFd>), HandoverError>;

fn receive(stream: BorrowedFd<'_>) -> io::Result<Received> {
    let mut version = [0];
    let mut key = Zeroizing::new([0; KEY_LENGTH]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut version), IoSliceMut::new(key.as_mut())],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let sockets: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        })
        .flatten()
        .collect();
    if got.bytes != MESSAGE || version != [VERSION] || sockets.len() != SOCKETS {
        return Ok(Err(HandoverError::Unknown));
    }
    Ok(Ok((key, sockets)))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

    use super::*;

    fn listener() -> TcpListener {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    #[tokio::test]
    async fn what_waits_in_the_queue_is_handed_on() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new(folder.path(), 8181).unwrap();
        assert!(place.take().await.unwrap().is_none());

        let (pods, admin) = (listener(), listener());
        let address: SocketAddr = pods.local_addr().unwrap();
        let waiting = TcpStream::connect(address).unwrap();
        let tokens = TokenKey::generate().unwrap();
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let token = tokens.issue("uid", address.ip(), 60, now);
        let old = {
            let place = place.clone();
            tokio::spawn(async move {
                place
                    .offer(pods.as_fd(), admin.as_fd(), &tokens)
                    .await
                    .unwrap();
                drop((pods, admin));
            })
        };
        let estate = loop {
            match place.take().await.unwrap() {
                Some(estate) => break estate,
                None => tokio::task::yield_now().await,
            }
        };
        estate.receipt.confirm().await.unwrap();
        old.await.unwrap();

        let taken = TcpListener::from(estate.pods);
        let (accepted, peer) = taken.accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
        drop(accepted);
        assert!(
            estate
                .tokens
                .verify(token.as_bytes(), "uid", address.ip(), now)
        );
    }

    #[tokio::test]
    async fn an_agent_that_only_asks_does_not_stop_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new(folder.path(), 8181).unwrap();
        let (pods, admin) = (listener(), listener());
        let tokens = TokenKey::generate().unwrap();
        let offer = place.offer(pods.as_fd(), admin.as_fd(), &tokens);
        let asks = async {
            for _ in 0..3 {
                while place.take().await.unwrap().is_none() {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::select! {
            _ = offer => panic!("the old agent gave up"),
            () = asks => {}
        }
    }

    #[test]
    fn the_folder_is_closed_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("run/rolegate");
        Place::new(&inner, 1).unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&inner, open).unwrap();
        Place::new(&inner, 1).unwrap();
        assert_eq!(std::fs::metadata(&inner).unwrap().mode() & 0o777, 0o700);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&inner, &link).unwrap();
        assert!(Place::new(&link, 1).is_err());
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(Place::new(&folder.path().join("file"), 1).is_err());
    }
}
