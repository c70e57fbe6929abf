//! Limits on the cost of policies.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use regorus::PolicyLengthConfig;
use regorus::utils::limits::ExecutionTimerConfig;

/// Limits on policies and data. Exceeding one is rejected at load, or denies at evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Maximum thread CPU time of one policy for an evaluation, 50 ms by default. Its wall time may
    /// be twenty times as long.
    pub eval_time: Duration,
    /// Maximum wall time of all policies for a request, 1 s by default. The remaining policies then
    /// deny.
    pub question_time: Duration,
    /// Maximum memory of one policy during an evaluation, in bytes, 16 MiB by default.
    pub eval_bytes: usize,
    /// Maximum size of a module, in bytes, 256 KiB by default.
    pub module_bytes: usize,
    /// Maximum number of modules in all ConfigMaps, 1,000 by default.
    pub modules: usize,
    /// Maximum size of all data (data ConfigMaps and replicated objects) as JSON, in bytes, 64 MiB
    /// by default.
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

/// Number of interpreter steps between checks of time and memory. A step may do as much work as a
/// built-in.
const STEPS: NonZeroU32 = NonZeroU32::new(8).unwrap();
/// The factor by which a lowered text may be longer than its module.
const LOWERED: usize = 16;
/// Maximum length of a line in a module.
const COLUMNS: NonZeroU32 = NonZeroU32::new(8192).unwrap();
/// Maximum number of lines in a module.
const LINES: NonZeroUsize = NonZeroUsize::new(20_000).unwrap();

impl Limits {
    pub(crate) fn timer(&self) -> ExecutionTimerConfig {
        ExecutionTimerConfig {
            limit: self.eval_time,
            check_interval: STEPS,
        }
    }

    /// Returns the limits for a lowered module, whose lines and text may be longer.
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
