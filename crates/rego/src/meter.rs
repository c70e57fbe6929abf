//! Measures the time and memory of an evaluation and stops it when a limit is exceeded.
//!
//! The interpreter evaluates on one thread and reads the clock every few steps. rolegate supplies
//! that clock, and checks both limits in it. An allocator counts memory per thread. Time is CPU
//! time of the thread, so that waiting for a processor does not count against a policy.

use std::alloc::System;
use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use alloc_metrics::{MetricAlloc, thread_metrics};
use regorus::utils::limits::{TimeSource, set_time_source};
use rustix::time::{ClockId, clock_gettime};

use crate::limits::Limits;

/// The factor by which wall time may exceed the limit of CPU time.
const WAITING: u32 = 20;

/// The allocator that counts the memory of each thread. A program that evaluates policies installs
/// it as its global allocator: without it, every evaluation fails.
pub type CountingAllocator = MetricAlloc<System>;

/// Returns the allocator that counts the memory of each thread, on top of the system's.
pub const fn counting_allocator() -> CountingAllocator {
    MetricAlloc::new(System)
}

thread_local! {
    static QUESTION: Cell<Option<Question>> = const { Cell::new(None) };
}

/// An exceeded limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exceeded {
    #[error("took longer than {} ms", .0.as_millis())]
    Time(Duration),
    #[error("took longer than {} ms of wall time", .0.as_millis())]
    Waiting(Duration),
    #[error("took more than {} MiB of memory", .0 / (1024 * 1024))]
    Memory(usize),
    /// The limit of memory cannot be enforced.
    #[error("cannot run: this program does not count memory")]
    Uncounted,
}

/// The current evaluation of this thread.
#[derive(Debug, Clone, Copy)]
struct Question {
    time: Duration,
    bytes: usize,
    /// Start of the evaluation, in wall time and CPU time.
    began: Duration,
    began_own: Duration,
    /// Memory limit of the thread, in bytes.
    most: isize,
    /// The limit that an earlier check found exceeded.
    exceeded: Option<Exceeded>,
}

/// Meters one evaluation on this thread until it is dropped.
#[derive(Debug)]
pub(crate) struct Meter(());

impl Meter {
    /// Starts an evaluation with its own budget on this thread.
    pub(crate) fn start(limits: &Limits) -> Self {
        let more = isize::try_from(limits.eval_bytes).unwrap_or(isize::MAX);
        QUESTION.set(Some(Question {
            time: limits.eval_time,
            bytes: limits.eval_bytes,
            began: clock(),
            began_own: own_time(),
            most: held().saturating_add(more),
            exceeded: (!counts_memory()).then_some(Exceeded::Uncounted),
        }));
        Self(())
    }

    /// Returns the exceeded limit, found now or by an earlier check.
    pub(crate) fn exceeded(&self) -> Option<Exceeded> {
        check_limits();
        QUESTION.get()?.exceeded
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        QUESTION.set(None);
    }
}

/// Checks the limits of this thread's evaluation. Returns true if one is exceeded.
fn check_limits() -> bool {
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
            // The first limit is the cause: a stopped evaluation releases its memory.
            exceeded: question.exceeded.or(exceeded),
            ..question
        }));
    }
    exceeded.is_some()
}

/// Returns true if an evaluation exceeded its wall time or CPU time. CPU time takes a system call,
/// so it is read only when it can matter.
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

/// Returns the memory that this thread has allocated and not freed, in bytes. It is negative if the
/// thread freed memory of other threads.
fn held() -> isize {
    thread_metrics().allocated_bytes
}

/// Returns true if the program's allocator is a [`CountingAllocator`].
fn counts_memory() -> bool {
    static COUNTS: OnceLock<bool> = OnceLock::new();
    *COUNTS.get_or_init(|| {
        let (_text, bytes) = weighed(|| std::hint::black_box(String::from("x")));
        bytes > 0
    })
}

/// Runs a closure, and returns its result and the memory that it still holds, in bytes.
pub(crate) fn weighed<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = held();
    let made = make();
    let more = held().saturating_sub(before);
    (made, usize::try_from(more).unwrap_or(0))
}

/// Returns the CPU time of this thread.
fn own_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Returns the wall time since the first call.
#[expect(
    clippy::disallowed_methods,
    reason = "it only stops an evaluation that takes too long"
)]
pub(crate) fn clock() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// The clock that the interpreter's timer reads, since it has none without `std`. It stands still
/// while an evaluation is within its limits, and jumps past the deadline otherwise.
#[derive(Debug)]
struct Bounds;

impl TimeSource for Bounds {
    fn now(&self) -> Option<Duration> {
        Some(if check_limits() {
            Duration::MAX
        } else {
            Duration::ZERO
        })
    }
}

/// Installs the clock, without which the interpreter's timer would have no effect. Every store
/// calls this first; later calls change nothing.
pub(crate) fn start_clock() {
    // The only possible error is that a clock is installed already, and only this code installs
    // one.
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
        assert_eq!((check_limits(), meter.exceeded()), (false, None));
        let much = vec![1u8; 2 * 1024 * 1024];
        assert!(check_limits());
        drop(much);
        assert!(!check_limits());
        assert_eq!(meter.exceeded(), Some(Exceeded::Memory(1024 * 1024)));
        drop(meter);
        let much = vec![1u8; 2 * 1024 * 1024];
        assert!(!check_limits());
        drop(much);
        assert_eq!(Meter::start(&limits).exceeded(), None);
    }

    #[test]
    fn cpu_time_passes_while_a_thread_computes() {
        let began = own_time();
        let until = clock() + Duration::from_secs(60);
        while own_time() == began && clock() < until {
            std::hint::spin_loop();
        }
        assert!(own_time() > began);
    }

    #[test]
    fn waiting_for_a_processor_extends_wall_time() {
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
