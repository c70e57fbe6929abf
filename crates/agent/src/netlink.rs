//! The kernel's notifications over netlink, and the times in which it dropped some.
//!
//! When a socket's buffer is full, the kernel says so once (`ENOBUFS`), and then drops notifications
//! without a further word until all that it kept has been read. So a loss lasts from that error
//! until there is nothing left to read ([`Reading::CaughtUp`]), and whatever was looked at in
//! between may have changed again since.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::NetlinkBuffer;
use rtnetlink::sys::Socket;
use rustix::io::Errno;
use rustix::net::{RecvFlags, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes of notifications that the kernel keeps for us. It doubles the number, and counts some 770
/// bytes for a small notification, so it keeps some 20,000: what a pod that sends from new MAC
/// addresses as fast as it can brings about in more than 100 ms in which the agent gets no CPU. It
/// is also the bound on the kernel's memory that such a pod can fill.
pub(crate) const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
/// Bytes of one read; the kernel's notifications are smaller.
const CHUNK: usize = 64 * 1024;

/// The result of one read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reading<'a> {
    /// Notifications, to be taken apart by [`messages`].
    Some(&'a [u8]),
    /// The kernel has dropped notifications, and may drop more until [`Reading::CaughtUp`].
    Lost,
    /// There is nothing left to read.
    CaughtUp,
}

/// A source of notifications: a socket, or a test.
pub(crate) trait Source {
    /// Reads once, without waiting.
    ///
    /// # Errors
    /// Returns an error if the source has ended.
    fn read(&mut self) -> io::Result<Reading<'_>>;
}

/// A socket that is subscribed to notifications of the network namespace it was opened in.
pub(crate) struct Notifications {
    socket: Socket,
    chunk: Box<[u8]>,
}

impl Notifications {
    /// Subscribes to `groups`, with a buffer of `buffer` bytes.
    ///
    /// # Errors
    /// Returns an error if the kernel lacks such notifications, or denies them to us.
    pub(crate) fn open(protocol: isize, groups: &[u32], buffer: usize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        set_receive_buffer(&socket, buffer)?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self {
            socket,
            chunk: vec![0; CHUNK].into_boxed_slice(),
        })
    }

    /// The socket once more, to wait for notifications.
    ///
    /// # Errors
    /// Returns an error if there are no more file descriptors.
    pub(crate) fn socket(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }
}

impl Source for Notifications {
    fn read(&mut self) -> io::Result<Reading<'_>> {
        let got = rustix::net::recv(&self.socket, &mut *self.chunk, RecvFlags::TRUNC);
        match got {
            // One that doesn't fit was cut off, perhaps where a message ends.
            Ok((_, length)) => Ok(self
                .chunk
                .get(..length)
                .map_or(Reading::Lost, Reading::Some)),
            Err(Errno::AGAIN) => Ok(Reading::CaughtUp),
            Err(Errno::NOBUFS) => Ok(Reading::Lost),
            Err(error) => Err(error.into()),
        }
    }
}

/// Sets the size of a socket's buffer, beyond what the host allows in general (`net.core.rmem_max`,
/// by default 208 KiB or 4 MiB) where the agent has `NET_ADMIN`.
fn set_receive_buffer(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    sockopt::set_socket_recv_buffer_size_force(&socket, bytes)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, bytes))?;
    Ok(())
}

/// The messages of one read; `None` for one that is cut off, which is the last.
pub(crate) fn messages(mut chunk: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        if chunk.is_empty() {
            return None;
        }
        let length = NetlinkBuffer::new_checked(chunk)
            .ok()
            .and_then(|message| usize::try_from(message.length()).ok());
        let message = length.and_then(|length| chunk.get(..length));
        // Messages begin at multiples of four bytes.
        chunk = length
            .and_then(|length| chunk.get(length.next_multiple_of(4)..))
            .unwrap_or_default();
        Some(message)
    })
}

/// Waits for what can be read from `fd`.
///
/// # Errors
/// Returns an error outside of a tokio runtime, or if `fd` can't be waited for.
#[expect(
    deprecated,
    reason = "unsound for types that don't own what they name; this one does"
)]
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A source of readings that a test made; caught up after the last.
    #[derive(Debug, Default)]
    pub(crate) struct Script {
        readings: VecDeque<Option<Vec<u8>>>,
        current: Vec<u8>,
    }

    impl Script {
        /// Adds a read of these bytes.
        pub(crate) fn some(&mut self, bytes: &[u8]) {
            self.readings.push_back(Some(bytes.to_vec()));
        }

        /// Adds the news of a loss.
        pub(crate) fn lost(&mut self) {
            self.readings.push_back(None);
        }
    }

    impl Source for Script {
        fn read(&mut self) -> io::Result<Reading<'_>> {
            Ok(match self.readings.pop_front() {
                Some(Some(bytes)) => {
                    self.current = bytes;
                    Reading::Some(&self.current)
                }
                Some(None) => Reading::Lost,
                None => Reading::CaughtUp,
            })
        }
    }

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
