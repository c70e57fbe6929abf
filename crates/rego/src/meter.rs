//! How much memory a question takes: an allocator that counts for each thread, and a bound on
//! what the thread that asks may hold more than when it began.
//!
//! The interpreter works through a question on one thread and looks at the clock again and again.
//! That look is where the bound is held ([`is_over`]).

use std::alloc::System;
use std::cell::Cell;

use alloc_metrics::{MetricAlloc, thread_metrics};

/// Here and not in the program, so that nothing can ask policies without it.
#[global_allocator]
static ALLOCATOR: MetricAlloc<System> = MetricAlloc::new(System);

thread_local! {
    /// How much this thread may hold, bytes, while a question is metered.
    static MOST: Cell<Option<isize>> = const { Cell::new(None) };
    static WAS_OVER: Cell<bool> = const { Cell::new(false) };
}

/// Meters one question on this thread, until it is dropped.
#[derive(Debug)]
pub(crate) struct Meter(());

impl Meter {
    /// From now on this thread may take so many bytes more than it gives back.
    pub(crate) fn start(bytes: usize) -> Self {
        let more = isize::try_from(bytes).unwrap_or(isize::MAX);
        MOST.set(Some(held().saturating_add(more)));
        WAS_OVER.set(false);
        Self(())
    }

    /// Whether the bound was exceeded when somebody looked, or is now.
    pub(crate) fn was_over(&self) -> bool {
        is_over() || WAS_OVER.get()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        MOST.set(None);
    }
}

/// Whether the question that this thread is at holds more than it may.
pub(crate) fn is_over() -> bool {
    let over = MOST.get().is_some_and(|most| held() > most);
    if over {
        WAS_OVER.set(true);
    }
    over
}

/// What this thread took and has not given back, bytes. Negative where it gave back others'.
fn held() -> isize {
    thread_metrics().allocated_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_counts_and_what_was_given_back_does_not() {
        let kept = vec![0u8; 4096];
        let meter = Meter::start(1024 * 1024);
        for _ in 0..100 {
            drop(vec![1u8; 512 * 1024]);
        }
        assert!(!is_over() && !meter.was_over());
        let many = vec![1u8; 2 * 1024 * 1024];
        assert!(is_over());
        drop((many, kept));
        assert!(!is_over() && meter.was_over());
        drop(meter);
        let many = vec![1u8; 2 * 1024 * 1024];
        assert!(!is_over());
        drop(many);
        assert!(!Meter::start(1024).was_over());
    }
}
