//! The first error of a supplied built-in during the current evaluation on this thread.
//!
//! If a function has several bodies, the interpreter drops errors and treats the failed body as
//! undefined. An evaluation in which a supplied built-in failed must be denied nevertheless.

use std::cell::RefCell;

thread_local! {
    static FAILURE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Records an error, unless there is an earlier one.
pub(super) fn note(error: &anyhow::Error) {
    FAILURE.with_borrow_mut(|failure| {
        failure.get_or_insert_with(|| error.to_string());
    });
}

/// Returns and clears the recorded error.
pub(crate) fn take() -> Option<String> {
    FAILURE.take()
}
