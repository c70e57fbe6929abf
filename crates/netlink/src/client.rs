//! Requests to the kernel, one at a time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use parking_lot::Mutex;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use rustix::io::Errno;

/// Maximum size of a response, in bytes. The largest, that of a link, has about 2,000.
const MAX_RESPONSE_BYTES: usize = 32 * 1024;
/// Maximum number of skipped responses to earlier requests.
const MAX_STALE_RESPONSES: usize = 16;

/// An error in querying the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The netlink socket could not be opened, or failed.
    #[error("the netlink socket failed: {0}")]
    Socket(#[from] io::Error),
    /// The response is invalid.
    #[error("cannot parse the kernel's response: {0}")]
    Response(String),
}

/// A client for the network namespace in which it was opened.
///
/// The kernel responds synchronously, so a request takes two system calls and no task has to wait.
/// It takes a few microseconds, less than a task switch, and the result is current.
#[derive(Debug)]
pub struct Client {
    channel: Mutex<Channel>,
}

impl Client {
    /// Opens a client.
    ///
    /// # Errors
    /// Returns an error if no netlink socket is available.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            channel: Mutex::new(Channel::open()?),
        })
    }

    /// Sends a request and returns its response; `None` if the kernel reports that the requested
    /// object does not exist.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot be queried.
    pub fn request(
        &self,
        request: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        self.channel.lock().request(request)
    }

    /// Returns the ID that this network namespace assigns to the one of an open file: -1 if it has
    /// none, `None` if the file is not a network namespace.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot be queried.
    pub fn namespace_id(&self, file: BorrowedFd<'_>) -> Result<Option<i32>, Error> {
        let mut message = NsidMessage::default();
        let fd = u32::try_from(file.as_raw_fd()).unwrap_or(u32::MAX);
        message.attributes = vec![NsidAttribute::Fd(fd)];
        match self.request(RouteNetlinkMessage::GetNsId(message)) {
            Ok(Some(RouteNetlinkMessage::NewNsId(message))) => Ok(message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) => Some(*id),
                    _ => None,
                })),
            Err(Error::Socket(error)) if is(&error, &[Errno::INVAL, Errno::BADF]) => Ok(None),
            Ok(other) => no_response(other),
            Err(error) => Err(error),
        }
    }
}

/// Converts a missing response to `None`, and an unexpected one to an error.
///
/// # Errors
/// Returns [`Error::Response`] if there is a response.
pub fn no_response<T>(response: Option<RouteNetlinkMessage>) -> Result<Option<T>, Error> {
    match response {
        None => Ok(None),
        Some(other) => Err(Error::Response(format!(
            "a response of another kind: {other:?}"
        ))),
    }
}

/// A socket with one request at a time.
struct Channel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Channel {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The response is available as soon as the request has been sent.
        socket.set_non_blocking(true)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(MAX_RESPONSE_BYTES),
        })
    }

    /// Sends a request and reads its response; `None` if the kernel reports that the requested
    /// object does not exist.
    fn request(
        &mut self,
        request: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        let unreadable = |error: &dyn std::fmt::Display| Error::Response(error.to_string());
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST;
        message.header.sequence_number = self.sequence;
        message.finalize();
        self.buffer.clear();
        self.buffer.resize(message.buffer_len(), 0);
        message.serialize(&mut self.buffer);
        self.socket.send(&self.buffer, 0)?;
        for _ in 0..MAX_STALE_RESPONSES {
            self.buffer.clear();
            self.buffer.reserve(MAX_RESPONSE_BYTES);
            self.socket.recv(&mut self.buffer, 0)?;
            let response = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.buffer)
                .map_err(|error| unreadable(&error))?;
            if response.header.sequence_number != self.sequence {
                continue;
            }
            return match response.payload {
                NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
                NetlinkPayload::Error(error) => {
                    let error = error.to_io();
                    match error.kind() {
                        io::ErrorKind::NotFound
                        | io::ErrorKind::NetworkUnreachable
                        | io::ErrorKind::HostUnreachable => Ok(None),
                        // The interface was removed after its index was learned.
                        _ if is(&error, &[Errno::NODEV, Errno::NXIO]) => Ok(None),
                        _ => Err(error.into()),
                    }
                }
                other => Err(unreadable(&format!("{other:?}"))),
            };
        }
        Err(unreadable(&"only responses to earlier requests"))
    }
}

fn is(error: &io::Error, any: &[Errno]) -> bool {
    any.iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
