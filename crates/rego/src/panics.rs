//! Catches panics of the interpreter without output on standard error. The failure is reported in
//! the result of the evaluation.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs a closure. Returns `None` if it panics.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |panic| {
            // The flag is unavailable while a thread shuts down; the panic is then printed.
            if !IS_QUIET.try_with(Cell::get).unwrap_or(false) {
                loud(panic);
            }
        }));
    });
    let was_quiet = IS_QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    IS_QUIET.set(was_quiet);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic, reason = "the panic is what is tested")]
    fn a_panic_is_caught_and_the_thread_is_loud_again() {
        assert_eq!(caught(|| 1), Some(1));
        assert_eq!(
            caught(|| if IS_QUIET.get() { panic!("quiet") } else { 2 }),
            None
        );
        assert!(!IS_QUIET.get());
    }
}
