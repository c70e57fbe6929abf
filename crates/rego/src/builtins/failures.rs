//! The first error of a built-in of ours in a question of this thread.
//!
//! The interpreter drops errors where a function has several bodies, and calls what failed undefined.
//! A question in which one of ours failed must be denied all the same.

use std::cell::RefCell;

thread_local! {
    static FAILURE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Notes an error, unless there was one before.
pub(super) fn note(error: &anyhow::Error) {
    FAILURE.with_borrow_mut(|failure| {
        failure.get_or_insert_with(|| error.to_string());
    });
}

/// Returns the recorded failure, and clears it.
pub(crate) fn take() -> Option<String> {
    FAILURE.take()
}
