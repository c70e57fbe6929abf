//! Netlink notifications from the kernel, and the detection of lost ones.
//!
//! When a socket's buffer is full, the kernel reports it once (`ENOBUFS`), and then silently drops
//! notifications until everything in the buffer has been read. So a loss lasts from that error
//! until there is nothing left to read ([`Reading::Drained`]). Any state that was queried in
//! between may be outdated.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::NetlinkBuffer;
use rtnetlink::sys::Socket;
use rustix::io::Errno;
use rustix::net::{RecvFlags, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Size of the kernel's notification buffer, in bytes. The kernel doubles the number and counts
/// some 770 bytes per small notification, so it holds some 20,000. A pod that sends from new MAC
/// addresses at full speed needs more than 100 ms without CPU time for the agent to fill it. It
/// also bounds the kernel memory that such a pod can use.
pub const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
/// Size of one read, in bytes. The kernel's notifications are smaller.
const MAX_READ_BYTES: usize = 64 * 1024;

/// The result of one read.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading<'a> {
    /// Notifications, which [`messages`] splits.
    Messages(&'a [u8]),
    /// The kernel has dropped notifications, and may drop more until [`Reading::Drained`].
    Lost,
    /// There is nothing left to read.
    Drained,
}

/// A source of notifications: a socket, or a test double.
pub trait Source {
    /// Reads once, without blocking.
    ///
    /// # Errors
    /// Returns an error if the source is closed.
    fn read(&mut self) -> io::Result<Reading<'_>>;
}

/// A socket subscribed to notifications of the network namespace in which it was opened.
pub struct Notifications {
    socket: Socket,
    chunk: Box<[u8]>,
}

impl Notifications {
    /// Subscribes to `groups`, with a buffer of `buffer` bytes.
    ///
    /// # Errors
    /// Returns an error if the kernel lacks such notifications, or denies them.
    pub fn open(protocol: isize, groups: &[u32], buffer: usize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        set_receive_buffer(&socket, buffer)?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self {
            socket,
            chunk: vec![0; MAX_READ_BYTES].into_boxed_slice(),
        })
    }

    /// Returns a duplicate of the socket, on which callers can wait until it is readable.
    ///
    /// # Errors
    /// Returns an error if there are no file descriptors left.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }
}

impl Source for Notifications {
    fn read(&mut self) -> io::Result<Reading<'_>> {
        let got = rustix::net::recv(&self.socket, &mut *self.chunk, RecvFlags::TRUNC);
        match got {
            // A read that does not fit was truncated, perhaps at the end of a message.
            Ok((_, length)) => Ok(self
                .chunk
                .get(..length)
                .map_or(Reading::Lost, Reading::Messages)),
            Err(Errno::AGAIN) => Ok(Reading::Drained),
            Err(Errno::NOBUFS) => Ok(Reading::Lost),
            Err(error) => Err(error.into()),
        }
    }
}

/// Sets the size of a socket's buffer. With `NET_ADMIN` it may exceed the host's limit
/// (`net.core.rmem_max`, by default 208 KiB or 4 MiB).
fn set_receive_buffer(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    sockopt::set_socket_recv_buffer_size_force(&socket, bytes)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, bytes))?;
    Ok(())
}

/// Splits one read into messages; `None` for a truncated one, which is the last.
pub fn messages(mut chunk: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        if chunk.is_empty() {
            return None;
        }
        let length = NetlinkBuffer::new_checked(chunk)
            .ok()
            .and_then(|message| usize::try_from(message.length()).ok());
        let message = length.and_then(|length| chunk.get(..length));
        // Messages are aligned to four bytes.
        chunk = length
            .and_then(|length| chunk.get(length.next_multiple_of(4)..))
            .unwrap_or_default();
        Some(message)
    })
}

/// Registers `fd` to wait until it is readable.
///
/// # Errors
/// Returns an error outside of a tokio runtime, or if `fd` does not support polling.
#[expect(
    deprecated,
    reason = "unsound for types that don't own what they name; this one does"
)]
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_cut_off_is_the_last() {
        let message = |length: u32, bytes: usize| {
            let mut message = length.to_ne_bytes().to_vec();
            message.resize(bytes, 0);
            message
        };
        let whole = message(18, 20);
        let chunk = [whole.clone(), message(24, 20)].concat();
        let seen: Vec<_> = messages(&chunk).collect();
        assert_eq!(seen, [Some(&whole[..18]), None]);
        assert_eq!(messages(&[0; 3]).collect::<Vec<_>>(), [None]);
        assert_eq!(messages(&[]).count(), 0);
    }
}
