//! The kernel's events up to now, and the detection of lost ones.
//!
//! On a network that pods share, an address is attached to its pod only if it has not been
//! elsewhere since the connection was opened, and only events show that. So a connection that may
//! have been opened before the end of a loss is refused permanently. If the host's own route
//! determines the attachment, the redirect rules drop packets from elsewhere, and one query of the
//! kernel is enough.

use std::time::{Duration, Instant};

use rolegate_netlink::Error as NetlinkError;

use super::{Attachment, Event, Verdict};

/// Maximum number of reads in a row, so that other tasks can use the source in between.
const MAX_READS: usize = 256;

/// The time after a loss in which an accepted connection may have been opened during the loss: it
/// may have waited to be accepted, or its handshake may have been unfinished. An unfinished
/// handshake does not last longer: after a second the kernel repeats its half, now to the address's
/// own pod, which resets the unknown connection.
pub const HALF_OPEN: Duration = Duration::from_secs(2);

/// A source of events: the kernel, or a test double.
pub(super) trait EventSource {
    /// Reads some pending events; `None` if no event is pending. The events cover everything that
    /// the kernel did before the call, unless one is [`Event::Lost`].
    ///
    /// # Errors
    /// Returns an error if the source is closed.
    fn read(&mut self) -> Result<Option<Vec<Event>>, NetlinkError>;
}

/// The events of a source, as far as they were read.
#[derive(Debug)]
pub(super) struct Events<S> {
    source: S,
    losses: Losses,
    /// True if the last read ended before the source was empty.
    behind: bool,
}

/// The result of reading the events up to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    /// True if the source was empty at the end.
    pub(super) all: bool,
    /// True if the previous read left events, and this one left none.
    pub(super) recovered: bool,
    /// True if events were lost, or may have been: earlier queries of the kernel are invalid.
    pub(super) unsure: bool,
    losses: Losses,
}

/// The times in which events were lost. The kernel reports the start of a loss. It ends when there
/// is nothing left to read, since the kernel may silently drop more until then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Losses {
    going_on: bool,
    last_end: Option<Instant>,
}

impl<S: EventSource> Events<S> {
    pub(super) fn new(source: S) -> Self {
        Self {
            source,
            losses: Losses::default(),
            behind: false,
        }
    }

    pub(super) fn source(&self) -> &S {
        &self.source
    }

    /// Sets the state after a read that ended before the source was empty.
    #[cfg(test)]
    pub(super) fn fall_behind(&mut self) {
        self.behind = true;
    }

    /// Passes the pending events to `take_in`, up to a limit.
    ///
    /// # Errors
    /// Returns an error if the source is closed.
    pub(super) fn catch_up(
        &mut self,
        mut take_in: impl FnMut(&Event),
    ) -> Result<Reached, NetlinkError> {
        let mut unsure = self.losses.going_on;
        let mut all = false;
        for _ in 0..MAX_READS {
            let read = self.source.read();
            // An error may hide events.
            self.losses.going_on |= read.is_err();
            let Some(some) = read? else {
                all = true;
                break;
            };
            for event in some {
                self.losses.going_on |= event == Event::Lost;
                take_in(&event);
            }
        }
        unsure |= self.losses.going_on;
        if all {
            self.losses.end(Instant::now());
        }
        let was_behind = std::mem::replace(&mut self.behind, !all);
        Ok(Reached {
            all,
            recovered: all && was_behind,
            unsure,
            losses: self.losses,
        })
    }
}

impl Reached {
    /// Returns the verdict on an address that is at `place` according to the kernel and the events
    /// so far, for a connection that was accepted at this time.
    pub(super) fn confirm(
        &self,
        verdict: Verdict,
        place: &Attachment,
        accepted: Instant,
    ) -> Verdict {
        if verdict != Verdict::Same || !place.is_shared() {
            return verdict;
        }
        if self.losses.concern(accepted) {
            Verdict::EventsLost
        } else if self.all {
            Verdict::Same
        } else {
            Verdict::Unknown
        }
    }
}

impl Losses {
    fn end(&mut self, now: Instant) {
        if std::mem::take(&mut self.going_on) {
            self.last_end = Some(now);
        }
    }

    /// Returns whether a connection that was accepted then may have been opened before the end of a
    /// loss. The result does not change later.
    fn concern(&self, accepted: Instant) -> bool {
        self.going_on || self.last_end.is_some_and(|end| accepted <= end + HALF_OPEN)
    }
}

#[cfg(test)]
pub(super) mod tests;
