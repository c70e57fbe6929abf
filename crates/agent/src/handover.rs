//! Upgrades without an interruption: a new agent takes the listening sockets and the token keys
//! from the old one over a Unix socket, then the old one drains.
//!
//! Sharing a port (`SO_REUSEPORT`) would reset the connections in the old socket's queue. A socket
//! that is handed over keeps its queue. The Unix socket is in the runtime directory, and both sides
//! check that the other runs as the same user.
//!
//! The old agent's message contains a version byte, a key of 32 bytes, the key ring, a count of other
//! endpoints' sockets, and the descriptors of the pods' and the operators' listening sockets. If the
//! count is not zero, a second message has these sockets. Agents that predate the ring or the count
//! omit it, and read only up to it. The new agent replies with one byte when it listens; otherwise
//! the old one continues.
//!
//! Three things are the same in every version: the socket's path, the version as the first byte, and
//! the reply, upon which the old agent stops listening. So a new agent that cannot read the rest
//! replies first, and then opens the ports itself. Connections in the old sockets' queues are reset,
//! and metadata tokens become invalid, but the update continues.

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

use crate::container_credentials::MAX_ADDRESSES;
use crate::runtime_folder::RuntimeFolder;
use crate::token::{KEY_LENGTH, KeyRing, RING_LENGTH, TokenKeys};

const VERSION: u8 = 1;
const TAKEN: u8 = 1;
/// Timeout of each side.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Size of a version byte and a key.
const SHORT_MESSAGE: usize = 1 + KEY_LENGTH;
/// Size of a message with the key ring.
const RING_MESSAGE: usize = SHORT_MESSAGE + RING_LENGTH;
/// Size of a message with the key ring and the count of other sockets.
const MESSAGE: usize = RING_MESSAGE + 1;
/// Number of sockets that every agent hands over: the pods' and the operators'.
const SOCKETS: usize = 2;

/// The reason why a handover failed.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The other side disconnected, or runs as another user.
    #[error("socket handover failed: {0}")]
    Io(#[from] io::Error),
    /// The message contradicts its version.
    #[error("the previous agent sent a malformed handover message")]
    Malformed,
}

/// The result of requesting the sockets of a running agent.
#[derive(Debug)]
pub enum Offer {
    /// The sockets and keys.
    Sockets(Box<Inherited>),
    /// A message of another version, which this agent cannot read. After
    /// [`Ack::confirm`] the old agent stops listening.
    OtherVersion {
        /// The version of the old agent's message.
        version: u8,
        /// The acknowledgment to send before the ports are opened.
        receipt: Ack,
    },
}

/// The state that the old agent hands over.
#[derive(Debug)]
pub struct Inherited {
    /// The pods' listening socket.
    pub pods: OwnedFd,
    /// The operators' listening socket.
    pub admin: OwnedFd,
    /// The listening sockets of other endpoints, which their addresses tell apart.
    pub endpoints: Vec<OwnedFd>,
    /// The keys of metadata tokens, so that tokens stay valid.
    pub keys: KeyRing,
    /// The acknowledgment to send when the new agent listens.
    pub receipt: Ack,
}

/// The sockets that an agent offers to the next one.
#[derive(Debug, Clone, Copy)]
pub struct OfferedSockets<'a> {
    /// The pods' listening socket.
    pub pods: BorrowedFd<'a>,
    /// The operators' listening socket.
    pub admin: BorrowedFd<'a>,
    /// The listening sockets of other endpoints, at most [`MAX_ADDRESSES`].
    pub endpoints: &'a [BorrowedFd<'a>],
}

/// The acknowledgment that the old agent waits for before it drains.
#[derive(Debug)]
pub struct Ack(UnixStream);

impl Ack {
    /// Tells the old agent that the new one listens on its sockets.
    ///
    /// # Errors
    /// Returns [`HandoverError::Io`] if the old agent is gone, which is harmless.
    pub async fn confirm(mut self) -> Result<(), HandoverError> {
        Ok(self.0.write_all(&[TAKEN]).await?)
    }
}

/// The path of a node's handover socket.
#[derive(Debug, Clone)]
pub struct HandoverSocket(PathBuf);

impl HandoverSocket {
    /// Returns the socket of agents on `port`.
    pub fn new(folder: &RuntimeFolder, port: u16) -> Self {
        Self(folder.join(&folder.name(port, "sock")))
    }

    /// Returns whether an agent listens on it.
    pub async fn is_taken(&self) -> bool {
        UnixStream::connect(&self.0).await.is_ok()
    }

    /// Requests the sockets of the running agent. Returns `None` if no agent is running.
    ///
    /// # Errors
    /// Returns a [`HandoverError`] if the running agent does not hand over.
    pub async fn take(&self) -> Result<Option<Offer>, HandoverError> {
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
        let received = within(received).await???;
        let receipt = Ack(stream);
        let message = match received {
            Received::This(message) => message,
            Received::Other(version) => {
                return Ok(Some(Offer::OtherVersion { version, receipt }));
            }
        };
        let mut sockets = message.sockets.into_iter();
        let (Some(pods), Some(admin)) = (sockets.next(), sockets.next()) else {
            return Err(HandoverError::Malformed);
        };
        let endpoints = match message.others {
            0 => Vec::new(),
            _ => {
                let Ack(stream) = &receipt;
                let others = || receive_others(stream.as_fd());
                within(stream.async_io(Interest::READABLE, others)).await??
            }
        };
        Ok(Some(Offer::Sockets(Box::new(Inherited {
            pods,
            admin,
            endpoints,
            keys: message.keys,
            receipt,
        }))))
    }

    /// Waits for the next agent, and returns when it has taken the sockets.
    ///
    /// # Errors
    /// Returns [`HandoverError::Io`] if the Unix socket cannot be opened.
    pub async fn offer(
        &self,
        sockets: OfferedSockets<'_>,
        tokens: &TokenKeys,
    ) -> Result<(), HandoverError> {
        let others = sockets.endpoints;
        let others = others.get(..MAX_ADDRESSES).unwrap_or(others);
        // The file is left over: a running agent would have handed over.
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let listener = UnixListener::bind(&self.0)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            let handed = async {
                check_peer(&stream)?;
                // The keys stay unchanged from here to the acknowledgment, after which the other
                // agent changes them.
                let keys = tokens.hand_over().await;
                let own = [sockets.pods, sockets.admin];
                let sent = stream.async_io(Interest::WRITABLE, || {
                    send(stream.as_fd(), &own, others.len(), keys.ring())
                });
                within(sent).await??;
                if !others.is_empty() {
                    let sent = || send_others(stream.as_fd(), others);
                    within(stream.async_io(Interest::WRITABLE, sent)).await??;
                }
                let taken = within(stream.read_u8()).await?? == TAKEN;
                if taken {
                    keys.confirm();
                }
                io::Result::Ok(taken)
            };
            match handed.await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    tracing::warn!("another agent requested the sockets but did not take them")
                }
                Err(error) => {
                    tracing::warn!(%error, "another agent requested the sockets but disconnected");
                }
            }
        }
    }
}

async fn within<T>(wait: impl Future<Output = T>) -> io::Result<T> {
    tokio::time::timeout(HANDOVER_TIMEOUT, wait)
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

fn send(
    stream: BorrowedFd<'_>,
    sockets: &[BorrowedFd<'_>],
    others: usize,
    keys: &KeyRing,
) -> io::Result<()> {
    let ring = keys.to_bytes();
    // The ring starts with the key.
    let (key, _) = ring.split_at(KEY_LENGTH);
    let others = [u8::try_from(others).unwrap_or(u8::MAX)];
    let parts = [
        IoSlice::new(&[VERSION]),
        IoSlice::new(key),
        IoSlice::new(ring.as_ref()),
        IoSlice::new(&others),
    ];
    send_parts(stream, &parts, MESSAGE, sockets)
}

/// Sends the sockets of other endpoints.
fn send_others(stream: BorrowedFd<'_>, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_parts(stream, &[IoSlice::new(&[VERSION])], 1, sockets)
}

fn send_parts(
    stream: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    length: usize,
    sockets: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ADDRESSES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = rustix::net::sendmsg(stream, parts, &mut ancillary, SendFlags::NOSIGNAL)?;
    // Far smaller than any socket buffer, so it is sent completely or not at all.
    if sent == length {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// The content of an old agent's message.
enum Received {
    /// A message in this agent's version.
    This(Box<Message>),
    /// The version of a message in another one.
    Other(u8),
}

/// A received message.
#[derive(Debug)]
struct Message {
    keys: KeyRing,
    sockets: Vec<OwnedFd>,
    /// The number of sockets in the next message.
    others: u8,
}

fn receive(stream: BorrowedFd<'_>) -> io::Result<Result<Received, HandoverError>> {
    let mut version = [0];
    let mut key = Zeroizing::new([0; KEY_LENGTH]);
    let mut ring = Zeroizing::new([0; RING_LENGTH]);
    let mut others = [0];
    let mut parts = [
        IoSliceMut::new(&mut version),
        IoSliceMut::new(key.as_mut()),
        IoSliceMut::new(ring.as_mut()),
        IoSliceMut::new(&mut others),
    ];
    let (length, sockets) = receive_parts(stream, &mut parts)?;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if version != [VERSION] {
        let [version] = version;
        return Ok(Ok(Received::Other(version)));
    }
    let keys = match length {
        MESSAGE | RING_MESSAGE => KeyRing::from_bytes(&ring),
        // Treated as old, since its age is unknown, so that it is rotated soon.
        SHORT_MESSAGE => Some(KeyRing::of_key(key, Timestamp::UNIX_EPOCH)),
        _ => None,
    };
    let [others] = others;
    match keys {
        Some(keys) if sockets.len() == SOCKETS => Ok(Ok(Received::This(Box::new(Message {
            keys,
            sockets,
            others,
        })))),
        _ => Ok(Err(HandoverError::Malformed)),
    }
}

/// Receives the sockets of other endpoints.
fn receive_others(stream: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut version = [0];
    let (_, sockets) = receive_parts(stream, &mut [IoSliceMut::new(&mut version)])?;
    Ok(sockets)
}

fn receive_parts(
    stream: BorrowedFd<'_>,
    parts: &mut [IoSliceMut<'_>],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ADDRESSES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(stream, parts, &mut ancillary, flags)?;
    let sockets = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((got.bytes, sockets))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

    use super::*;

    fn place(folder: &tempfile::TempDir) -> HandoverSocket {
        HandoverSocket::new(&RuntimeFolder::open(folder.path()).unwrap(), 8181)
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

    fn offered<'a>(pods: &'a TcpListener, admin: &'a TcpListener) -> OfferedSockets<'a> {
        OfferedSockets {
            pods: pods.as_fd(),
            admin: admin.as_fd(),
            endpoints: &[],
        }
    }

    #[tokio::test]
    async fn what_waits_in_the_queue_is_handed_on() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder);
        assert!(place.take().await.unwrap().is_none());

        let (pods, admin, endpoint) = (listener(), listener(), listener());
        let address: SocketAddr = pods.local_addr().unwrap();
        let endpoint_address = endpoint.local_addr().unwrap();
        let waiting = TcpStream::connect(address).unwrap();
        let tokens = keys();
        let token = tokens.issue("uid", address.ip(), 60, now());
        let old = {
            let place = place.clone();
            tokio::spawn(async move {
                let endpoints = [endpoint.as_fd()];
                let offered = OfferedSockets {
                    endpoints: &endpoints,
                    ..offered(&pods, &admin)
                };
                place.offer(offered, &tokens).await.unwrap();
                drop((pods, admin));
            })
        };
        let estate = loop {
            match place.take().await.unwrap() {
                Some(Offer::Sockets(estate)) => break estate,
                Some(other) => panic!("{other:?}"),
                None => tokio::task::yield_now().await,
            }
        };
        estate.receipt.confirm().await.unwrap();
        old.await.unwrap();

        let taken = TcpListener::from(estate.pods);
        let (accepted, peer) = taken.accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
        drop(accepted);
        let endpoints = estate.endpoints.into_iter().map(TcpListener::from);
        let endpoints: Vec<_> = endpoints.map(|it| it.local_addr().unwrap()).collect();
        assert_eq!(endpoints, [endpoint_address]);
        let tokens = TokenKeys::new(estate.keys);
        assert!(tokens.verify(token.as_bytes(), "uid", address.ip(), now()));
        // A key that arrived with its age is not rotated at once.
        assert!(!tokens.rotate(now(), |_| ()).await.unwrap());
    }

    /// Tests a message from an agent without the ring, and what such an agent reads.
    #[tokio::test]
    async fn agents_without_a_key_ring_are_compatible() {
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
        let Received::This(message) = receive(new.as_fd()).unwrap().unwrap() else {
            panic!("another version");
        };
        assert_eq!((message.sockets.len(), message.others), (SOCKETS, 0));
        let received = TokenKeys::new(message.keys);
        assert!(received.verify(token.as_bytes(), "uid", address, now()));
        assert!(received.rotate(now(), |_| ()).await.unwrap());
        assert!(received.verify(token.as_bytes(), "uid", address, now()));

        send(new.as_fd(), &sockets, 0, handed.ring()).unwrap();
        let mut read = vec![0; short.len()];
        old.readable().await.unwrap();
        old.try_read(&mut read).unwrap();
        assert_eq!(read, short);
    }

    /// Tests a message from an agent without the count of other sockets, and what such an agent reads.
    #[tokio::test]
    async fn agents_without_other_endpoints_are_compatible() {
        let (old, new) = UnixStream::pair().unwrap();
        let sockets = [listener(), listener()];
        let sockets = [sockets[0].as_fd(), sockets[1].as_fd()];
        let others = [listener(), listener()];
        let handed = keys();
        let handed = handed.hand_over().await;
        let ring = handed.ring().to_bytes();
        let message: Vec<u8> = [&[VERSION], &ring[..KEY_LENGTH], ring.as_ref()].concat();
        send_parts(
            old.as_fd(),
            &[IoSlice::new(&message)],
            RING_MESSAGE,
            &sockets,
        )
        .unwrap();
        let Received::This(received) = receive(new.as_fd()).unwrap().unwrap() else {
            panic!("another version");
        };
        assert_eq!((received.sockets.len(), received.others), (SOCKETS, 0));

        send(old.as_fd(), &sockets, others.len(), handed.ring()).unwrap();
        send_others(old.as_fd(), &others.each_ref().map(AsFd::as_fd)).unwrap();
        let mut read = vec![0; RING_MESSAGE];
        let (length, taken) =
            receive_parts(new.as_fd(), &mut [IoSliceMut::new(&mut read)]).unwrap();
        assert_eq!((length, taken.len()), (RING_MESSAGE, SOCKETS));
        assert_eq!(read, message);
    }

    #[tokio::test]
    async fn other_versions_and_missing_sockets_are_rejected() {
        let tokens = keys();
        let ring = tokens.hand_over().await.ring().to_bytes();
        let sockets = [listener(), listener()];
        let sockets = [sockets[0].as_fd(), sockets[1].as_fd()];
        for (version, count, expected) in [
            (VERSION, SOCKETS, "sockets"),
            (VERSION + 1, SOCKETS, "version 2"),
            (VERSION + 1, SOCKETS - 1, "version 2"),
            (VERSION, SOCKETS - 1, "malformed"),
        ] {
            let (old, new) = UnixStream::pair().unwrap();
            let message = [&[version], &ring[..KEY_LENGTH]].concat();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&sockets[..count])));
            let parts = [IoSlice::new(&message)];
            rustix::net::sendmsg(&old, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
            let received = match receive(new.as_fd()).unwrap() {
                Ok(Received::This(..)) => "sockets".to_owned(),
                Ok(Received::Other(version)) => format!("version {version}"),
                Err(_) => "malformed".to_owned(),
            };
            assert_eq!(received, expected, "{version} {count}");
        }
        let (old, new) = UnixStream::pair().unwrap();
        drop(old);
        assert!(receive(new.as_fd()).is_err(), "no message at all");
    }

    /// An agent of another version listens until its successor replies.
    #[tokio::test]
    async fn an_agent_of_another_version_is_asked_to_stop_listening() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder);
        let listener = UnixListener::bind(&place.0).unwrap();
        let old = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&[VERSION + 1, 7, 7, 7]).await.unwrap();
            stream.read_u8().await.unwrap()
        };
        let new = async {
            match place.take().await.unwrap() {
                Some(Offer::OtherVersion { version, receipt }) => {
                    receipt.confirm().await.unwrap();
                    version
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(tokio::join!(old, new), (TAKEN, VERSION + 1));
    }

    #[tokio::test]
    async fn a_request_alone_does_not_stop_the_old_agent() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder);
        let (pods, admin) = (listener(), listener());
        let tokens = keys();
        let offer = place.offer(offered(&pods, &admin), &tokens);
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
