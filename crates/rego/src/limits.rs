//! Bounds on what policies may cost.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use regorus::PolicyLengthConfig;
use regorus::utils::limits::ExecutionTimerConfig;

/// Bounds on policies and data. What is beyond them is refused at load, or denies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Time of its thread that one policy may take for one question, 50 ms by default; by the
    /// clock it may be twenty times as much.
    pub eval_time: Duration,
    /// Wall time that all policies may take for one question, 1 s by default; those that are left
    /// then deny.
    pub question_time: Duration,
    /// Bytes that one policy may hold while it is asked one question, 16 MiB by default.
    pub eval_bytes: usize,
    /// Bytes of one module's text, 256 KiB by default.
    pub module_bytes: usize,
    /// Modules of all ConfigMaps together, 1,000 by default.
    pub modules: usize,
    /// Bytes of all data (data ConfigMaps and replicated objects) as JSON, 64 MiB by default.
    pub data_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            eval_time: Duration::from_millis(50),
            question_time: Duration::from_secs(1),
            eval_bytes: 16 * 1024 * 1024,
            module_bytes: 256 * 1024,
            modules: 1000,
            data_bytes: 64 * 1024 * 1024,
        }
    }
}

/// How many steps are between two looks at clock and memory. One step may make as much as one
/// built-in.
const STEPS: NonZeroU32 = NonZeroU32::new(8).unwrap();
/// The factor by which a lowered text may exceed its module in length.
const LOWERED: usize = 16;
/// Longest line of a module.
const COLUMNS: NonZeroU32 = NonZeroU32::new(8192).unwrap();
/// Most lines of a module.
const LINES: NonZeroUsize = NonZeroUsize::new(20_000).unwrap();

impl Limits {
    pub(crate) fn timer(&self) -> ExecutionTimerConfig {
        ExecutionTimerConfig {
            limit: self.eval_time,
            check_interval: STEPS,
        }
    }

    /// The same for a lowered module, of which lines and text may be longer.
    pub(crate) fn lowered_lengths(&self) -> PolicyLengthConfig {
        PolicyLengthConfig {
            max_col: NonZeroU32::MAX,
            max_file_bytes: NonZeroUsize::new(self.module_bytes.saturating_mul(LOWERED))
                .unwrap_or(NonZeroUsize::MIN),
            max_lines: LINES,
        }
    }

    pub(crate) fn lengths(&self) -> PolicyLengthConfig {
        PolicyLengthConfig {
            max_col: COLUMNS,
            max_file_bytes: NonZeroUsize::new(self.module_bytes).unwrap_or(NonZeroUsize::MIN),
            max_lines: LINES,
        }
    }
}
