//! What a question takes, of time and of memory, and how it is stopped beyond.
//!
//! The interpreter works through a question on one thread and looks at the clock every few steps.
//! The clock is ours, so that look is where both bounds are held. Memory is known of an allocator
//! that counts for each thread. Time is the thread's own: one that waits for a processor is not
//! to blame.

use std::alloc::System;
use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use alloc_metrics::{MetricAlloc, thread_metrics};
use regorus::utils::limits::{TimeSource, set_time_source};
use rustix::time::{ClockId, clock_gettime};

use crate::limits::Limits;

/// How often as long as its own time a question may take by the clock.
const WAITING: u32 = 20;

/// Here and not in the program, so that nothing can ask policies without it.
#[global_allocator]
static ALLOCATOR: MetricAlloc<System> = MetricAlloc::new(System);

thread_local! {
    static QUESTION: Cell<Option<Question>> = const { Cell::new(None) };
}

/// A bound that was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exceeded {
    #[error("took longer than {} ms", .0.as_millis())]
    Time(Duration),
    #[error("took longer than {} ms by the clock", .0.as_millis())]
    Waiting(Duration),
    #[error("took more than {} MiB of memory", .0 / (1024 * 1024))]
    Memory(usize),
}

/// A question that this thread is at.
#[derive(Debug, Clone, Copy)]
struct Question {
    time: Duration,
    bytes: usize,
    /// When it began, by the clock and of the thread's own time.
    began: Duration,
    began_own: Duration,
    /// What the thread may hold, bytes.
    most: isize,
    /// What was exceeded when somebody looked.
    exceeded: Option<Exceeded>,
}

/// Meters one question on this thread, until it is dropped.
#[derive(Debug)]
pub(crate) struct Meter(());

impl Meter {
    /// From now on this thread may take as much as one question may.
    pub(crate) fn start(limits: &Limits) -> Self {
        let more = isize::try_from(limits.eval_bytes).unwrap_or(isize::MAX);
        QUESTION.set(Some(Question {
            time: limits.eval_time,
            bytes: limits.eval_bytes,
            began: clock(),
            began_own: own_time(),
            most: held().saturating_add(more),
            exceeded: None,
        }));
        Self(())
    }

    /// What was exceeded, now or when somebody looked.
    pub(crate) fn exceeded(&self) -> Option<Exceeded> {
        look();
        QUESTION.get()?.exceeded
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        QUESTION.set(None);
    }
}

/// Looks at what this thread's question took so far: whether that is too much.
fn look() -> bool {
    let Some(question) = QUESTION.get() else {
        return false;
    };
    let taken = clock().saturating_sub(question.began);
    let own = || own_time().saturating_sub(question.began_own);
    let exceeded = if held() > question.most {
        Some(Exceeded::Memory(question.bytes))
    } else {
        too_long(question.time, taken, own)
    };
    if exceeded.is_some() {
        QUESTION.set(Some(Question {
            // The first is the reason: what is stopped gives its memory back.
            exceeded: question.exceeded.or(exceeded),
            ..question
        }));
    }
    exceeded.is_some()
}

/// Whether a question took too long, by what it took by the clock and of its own time. That is not
/// looked at before it can matter: it takes a system call.
fn too_long(limit: Duration, taken: Duration, own: impl FnOnce() -> Duration) -> Option<Exceeded> {
    let waiting = limit * WAITING;
    if taken <= limit {
        None
    } else if taken > waiting {
        Some(Exceeded::Waiting(waiting))
    } else {
        (own() > limit).then_some(Exceeded::Time(limit))
    }
}

/// What this thread took and has not given back, bytes. Negative where it gave back others'.
fn held() -> isize {
    thread_metrics().allocated_bytes
}

/// Runs a closure, and returns its result with the bytes that this thread still holds for it.
pub(crate) fn weighed<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = held();
    let made = make();
    let more = held().saturating_sub(before);
    (made, usize::try_from(more).unwrap_or(0))
}

/// How long this thread ran.
fn own_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The real clock: the time since somebody first asked.
pub(crate) fn clock() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// The clock that the interpreter's timer reads: it brings none without `std`. Time stands still
/// while a question keeps its bounds, and is up when it doesn't.
#[derive(Debug)]
struct Bounds;

impl TimeSource for Bounds {
    fn now(&self) -> Option<Duration> {
        Some(if look() {
            Duration::MAX
        } else {
            Duration::ZERO
        })
    }
}

/// Hands the interpreter its clock. Without one its timer would stop nothing, so every book does
/// this first; the second time changes nothing.
pub(crate) fn start_clock() {
    // The only error is that there is one already, and nobody but us sets it.
    let _ = set_time_source(&Bounds);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_counts_and_what_was_given_back_does_not() {
        let limits = Limits {
            eval_bytes: 1024 * 1024,
            ..Limits::default()
        };
        let meter = Meter::start(&limits);
        for _ in 0..100 {
            drop(vec![1u8; 512 * 1024]);
        }
        assert_eq!((look(), meter.exceeded()), (false, None));
        let much = vec![1u8; 2 * 1024 * 1024];
        assert!(look());
        drop(much);
        assert!(!look());
        assert_eq!(meter.exceeded(), Some(Exceeded::Memory(1024 * 1024)));
        drop(meter);
        let much = vec![1u8; 2 * 1024 * 1024];
        assert!(!look());
        drop(much);
        assert_eq!(Meter::start(&limits).exceeded(), None);
    }

    #[test]
    fn a_thread_that_waits_for_a_processor_has_more_time_by_the_clock() {
        const LIMIT: Duration = Duration::from_millis(50);
        let ms = Duration::from_millis;
        let never = || panic!("a system call for nothing");
        assert_eq!(too_long(LIMIT, ms(50), never), None);
        assert_eq!(too_long(LIMIT, ms(500), || ms(50)), None);
        let time = Some(Exceeded::Time(LIMIT));
        assert_eq!(too_long(LIMIT, ms(51), || ms(51)), time);
        let waiting = Some(Exceeded::Waiting(ms(1000)));
        assert_eq!(too_long(LIMIT, ms(1001), never), waiting);
    }
}
