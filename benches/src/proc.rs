//! A process's resource usage, as counted by Linux.

use std::time::Duration;

use anyhow::Context;

/// The unit of CPU time in `/proc`: 10 ms on all current architectures.
const TICK: Duration = Duration::from_millis(10);
const KIB: u64 = 1024;

/// Returns user and system time of all threads since the start.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in the second field may contain anything, including spaces and parentheses.
    let (_, fields) = stat
        .rsplit_once(')')
        .context("/proc/PID/stat has no name")?;
    let ticks: u32 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u32>())
        .sum::<Result<_, _>>()?;
    Ok(TICK * ticks)
}

/// Resident memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) now: u64,
    pub(crate) peak: u64,
}

/// Returns the resident memory of a process, current and peak.
pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse::<u64>().ok())
            .with_context(|| format!("/proc/PID/status has no {name}"))
    };
    Ok(Memory {
        now: field("VmRSS:")? * KIB,
        peak: field("VmHWM:")? * KIB,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_time() {
        let pid = std::process::id();
        let memory = memory(pid).unwrap();
        assert!(memory.now > 0 && memory.peak >= memory.now);
        let before = cpu(pid).unwrap();
        while cpu(pid).unwrap() <= before {}
        assert!(super::memory(u32::MAX).is_err());
    }
}
