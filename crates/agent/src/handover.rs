//! An upgrade without a gap: a new agent takes the listening sockets and the key of metadata
//! tokens from the old one over a Unix socket, then the old one drains.
//!
//! Sharing a port (`SO_REUSEPORT`) would reset what waits in the old socket's queue; a socket
//! that is handed on keeps its queue. The Unix socket lies in the runtime folder, and both ends
//! check that the other runs as the same user.
//!
//! Message of the old agent: one byte of version, 32 bytes of key, the whole ring of keys, and with
//! it the descriptors of the pods' and the operators' listening sockets. Agents that predate the
//! ring omit it, and read no further than the key. The new agent answers one byte when it listens;
//! otherwise the old one carries on.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use zeroize::Zeroizing;

use crate::runtime_folder::RuntimeFolder;
use crate::token::{KEY_LENGTH, KeyRing, RING_LENGTH, TokenKeys};

const VERSION: u8 = 1;
const TAKEN: u8 = 1;
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// A version byte and a key.
const SHORT_MESSAGE: usize = 1 + KEY_LENGTH;
/// The same and the ring.
const MESSAGE: usize = SHORT_MESSAGE + RING_LENGTH;
/// The pods' and the operators' listening sockets.
const SOCKETS: usize = 2;

/// Why sockets could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
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
    /// The keys of metadata tokens, so that tokens stay good.
    pub keys: KeyRing,
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
    /// The socket of agents on `port`.
    pub fn new(folder: &RuntimeFolder, port: u16) -> Self {
        Self(folder.join(&folder.name(port, "sock")))
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
        let (keys, sockets) = within(received).await???;
        let mut sockets = sockets.into_iter();
        let (Some(pods), Some(admin)) = (sockets.next(), sockets.next()) else {
            return Err(HandoverError::Unknown);
        };
        Ok(Some(Estate {
            pods,
            admin,
            keys,
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
        tokens: &TokenKeys,
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
                // The keys are not changed from here to the confirmation, after which the other
                // agent changes them.
                let keys = tokens.hand_over().await;
                let sent = stream.async_io(Interest::WRITABLE, || {
                    send(stream.as_fd(), &[pods, admin], keys.ring())
                });
                within(sent).await??;
                let taken = within(stream.read_u8()).await?? == TAKEN;
                if taken {
                    keys.confirm();
                }
                io::Result::Ok(taken)
            };
            match handed.await {
                Ok(true) => return Ok(()),
                Ok(false) => {
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

fn send(stream: BorrowedFd<'_>, sockets: &[BorrowedFd<'_>], keys: &KeyRing) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let ring = keys.to_bytes();
    // The ring begins with the key.
    let (key, _) = ring.split_at(KEY_LENGTH);
    let parts = [
        IoSlice::new(&[VERSION]),
        IoSlice::new(key),
        IoSlice::new(ring.as_ref()),
    ];
    let sent = rustix::net::sendmsg(stream, &parts, &mut ancillary, SendFlags::NOSIGNAL)?;
    // Far below any socket buffer, it goes at once or not at all.
    if sent == MESSAGE {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

type Received = Result<(KeyRing, Vec<OwnedFd>), HandoverError>;

fn receive(stream: BorrowedFd<'_>) -> io::Result<Received> {
    let mut version = [0];
    let mut key = Zeroizing::new([0; KEY_LENGTH]);
    let mut ring = Zeroizing::new([0; RING_LENGTH]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        stream,
        &mut [
            IoSliceMut::new(&mut version),
            IoSliceMut::new(key.as_mut()),
            IoSliceMut::new(ring.as_mut()),
        ],
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
    let keys = match got.bytes {
        MESSAGE => KeyRing::from_bytes(&ring),
        // As old as can be, so that it is changed soon: when it was made is not known.
        SHORT_MESSAGE => Some(KeyRing::of_key(key, Timestamp::UNIX_EPOCH)),
        _ => None,
    };
    match keys {
        Some(keys) if version == [VERSION] && sockets.len() == SOCKETS => Ok(Ok((keys, sockets))),
        _ => Ok(Err(HandoverError::Unknown)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

    use super::*;

    fn place(folder: &tempfile::TempDir) -> Place {
        Place::new(&RuntimeFolder::open(folder.path()).unwrap(), 8181)
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn keys() -> TokenKeys {
        TokenKeys::new(KeyRing::generate(now()).unwrap())
    }

    fn listener() -> TcpListener {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    #[tokio::test]
    async fn what_waits_in_the_queue_is_handed_on() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder);
        assert!(place.take().await.unwrap().is_none());

        let (pods, admin) = (listener(), listener());
        let address: SocketAddr = pods.local_addr().unwrap();
        let waiting = TcpStream::connect(address).unwrap();
        let tokens = keys();
        let token = tokens.issue("uid", address.ip(), 60, now());
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
        let tokens = TokenKeys::new(estate.keys);
        assert!(tokens.verify(token.as_bytes(), "uid", address.ip(), now()));
        // A key that came with its age is not changed at once.
        assert!(!tokens.rotate(now(), |_| ()).await.unwrap());
    }

    /// A message of an agent of before the ring, and what such an agent reads of ours.
    #[tokio::test]
    async fn agents_of_before_the_ring_are_understood_and_understand() {
        let (old, new) = UnixStream::pair().unwrap();
        let sockets = [listener(), listener()];
        let sockets = [sockets[0].as_fd(), sockets[1].as_fd()];
        let tokens = keys();
        let address = [10, 0, 0, 1].into();
        let token = tokens.issue("uid", address, 60, now());
        let handed = tokens.hand_over().await;
        let ring = handed.ring().to_bytes();
        let short: Vec<u8> = [&[VERSION], &ring[..KEY_LENGTH]].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&sockets)));
        let parts = [IoSlice::new(&short)];
        rustix::net::sendmsg(&old, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        let (received, taken) = receive(new.as_fd()).unwrap().unwrap();
        assert_eq!(taken.len(), SOCKETS);
        let received = TokenKeys::new(received);
        assert!(received.verify(token.as_bytes(), "uid", address, now()));
        assert!(received.rotate(now(), |_| ()).await.unwrap());
        assert!(received.verify(token.as_bytes(), "uid", address, now()));

        send(new.as_fd(), &sockets, handed.ring()).unwrap();
        let mut read = vec![0; short.len()];
        old.readable().await.unwrap();
        old.try_read(&mut read).unwrap();
        assert_eq!(read, short);
    }

    #[tokio::test]
    async fn an_agent_that_only_asks_does_not_stop_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder);
        let (pods, admin) = (listener(), listener());
        let tokens = keys();
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
}
