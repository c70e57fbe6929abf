//! The kernel's events up to now, and the times in which some were lost.
//!
//! On a network that pods share, an address is at its pod's place only if it has not been elsewhere
//! since the connection was begun, and events are all that tells. So a connection that may have been
//! begun before the end of a loss is refused for good. Where the host's own route determines the
//! place, the rules drop what comes in elsewhere, and a look at the kernel is enough.

use std::time::{Duration, Instant};

use super::{Attachment, AttachmentError, Event, Verdict};

/// Reads of events in one go; others may have the source in between.
const MAX_READS: usize = 256;

/// The time after a loss in which a connection that is accepted may have been begun during it: it
/// waits to be accepted, or its handshake is not finished. An unfinished one doesn't last longer.
/// After a second the kernel repeats its half of the handshake, now to the address's own pod, and
/// that one resets what it knows nothing of.
pub const HALF_OPEN: Duration = Duration::from_secs(2);

/// A source of events: the kernel, or a test.
pub(super) trait EventSource {
    /// Reads pending events, a few at a time; `None` without any. Whatever the kernel did before
    /// that call is included, unless it is [`Event::Lost`].
    ///
    /// # Errors
    /// Returns an error if the source has ended.
    fn read(&mut self) -> Result<Option<Vec<Event>>, AttachmentError>;
}

/// The events of a source, as far as they were read.
#[derive(Debug)]
pub(super) struct Events<S> {
    source: S,
    losses: Losses,
    /// The last reading ended before the source did.
    behind: bool,
}

/// The result of reading the events up to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    /// There was nothing left to read.
    pub(super) all: bool,
    /// The reading before had left some, and this one none.
    pub(super) recovered: bool,
    /// Events were lost, or may have been: earlier looks at the kernel are worth nothing.
    pub(super) unsure: bool,
    losses: Losses,
}

/// The times in which events were lost. The kernel says when one begins; it ends when there is
/// nothing left to read, since until then more may be dropped in silence.
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

    /// Leaves it as after a reading that ended before the source did.
    #[cfg(test)]
    pub(super) fn fall_behind(&mut self) {
        self.behind = true;
    }

    /// Hands the events to `take_in` that the source has by now, up to a bound.
    ///
    /// # Errors
    /// Returns an error if the source has ended.
    pub(super) fn catch_up(
        &mut self,
        mut take_in: impl FnMut(&Event),
    ) -> Result<Reached, AttachmentError> {
        let mut unsure = self.losses.going_on;
        let mut all = false;
        for _ in 0..MAX_READS {
            let read = self.source.read();
            // An error may stand for events too.
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
    /// The verdict on an address that is at `place` by the kernel and the events so far, for a
    /// connection that was accepted at this time.
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

    /// Returns whether a connection that was accepted then may have been begun before the end of a
    /// loss. It stays so.
    fn concern(&self, accepted: Instant) -> bool {
        self.going_on || self.last_end.is_some_and(|end| accepted <= end + HALF_OPEN)
    }
}

#[cfg(test)]
pub(super) mod tests;
