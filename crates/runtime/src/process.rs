//! Process metrics, read from `/proc/self` at each scrape under the standard Prometheus names; the
//! limit of open files; and protection of the process's memory.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use rustix::process::{DumpableBehavior, Resource, getrlimit, set_dumpable_behavior, setrlimit};

/// Clock ticks per second in `/proc`: always 100 in user space on Linux, independent of the kernel.
const TICKS_PER_SECOND: f64 = 100.0;

/// Makes the process non-dumpable: no core dumps, whatever the limits and the kernel's core pattern
/// say, and no access to its memory by other processes of the same user. Root still has access. The
/// process's files in `/proc` belong to root from now on. Child processes are not affected.
///
/// # Errors
/// Returns an error if the kernel does not support it, which every Linux does.
pub fn hide_memory() -> std::io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Raises the limit of open files and sockets as far as the process may, and returns it. Many
/// systems default to 1,024 for programs that cannot use more.
pub fn raise_open_files() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    // `None` means unlimited.
    let now = match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum,
        Err(_) => before,
    };
    now.unwrap_or(u64::MAX)
}

/// Collects memory, CPU time, open files and start time. Unreadable values are omitted.
#[derive(Debug)]
pub struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name, help, unit: Option<&Unit>, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status_field(&status, "VmRSS:").map(|kib| kib * 1024.0);
        gauge(
            "process_resident_memory",
            "Resident memory",
            Some(&Unit::Bytes),
            resident,
        )?;
        let virtual_memory = status_field(&status, "VmSize:").map(|kib| kib * 1024.0);
        gauge(
            "process_virtual_memory",
            "Virtual memory",
            Some(&Unit::Bytes),
            virtual_memory,
        )?;
        // One of them is the descriptor used for counting.
        let files = fs::read_dir("/proc/self/fd")
            .ok()
            .map(|files| files.count().saturating_sub(1) as f64);
        gauge("process_open_fds", "Open file descriptors", None, files)?;
        let most = getrlimit(Resource::Nofile).current.map(|most| most as f64);
        gauge(
            "process_max_fds",
            "Maximum number of open file descriptors",
            None,
            most,
        )?;
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        gauge(
            "process_start_time",
            "Start time since the Unix epoch",
            Some(&Unit::Seconds),
            boot_time().and_then(|boot| start_time(boot, &stat)),
        )?;
        if let Some(spent) = cpu_time(&stat) {
            let spent = ConstCounter::new(spent);
            spent.encode(encoder.encode_descriptor(
                "process_cpu",
                "User and system CPU time spent",
                Some(&Unit::Seconds),
                spent.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

fn status_field(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns a field of `/proc/PID/stat`, numbered as in proc(5). The second field is the program's
/// name in parentheses and can contain anything, so counting starts after it.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace()
        .nth(number.checked_sub(3)?)?
        .parse()
        .ok()
}

/// Returns the start time of a process since the Unix epoch, in seconds.
fn start_time(boot: f64, stat: &str) -> Option<f64> {
    Some(boot + stat_field(stat, 22)? / TICKS_PER_SECOND)
}

/// Returns the CPU time that a process has spent as user and system, in seconds.
fn cpu_time(stat: &str) -> Option<f64> {
    Some((stat_field(stat, 14)? + stat_field(stat, 15)?) / TICKS_PER_SECOND)
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::test_util::Exposition;

    #[test]
    fn reads_the_kernels_formats() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 12345 1 1";
        assert_eq!(stat_field(stat, 14), Some(250.0));
        assert_eq!(stat_field(stat, 15), Some(50.0));
        assert_eq!(stat_field(stat, 22), Some(12345.0));
        assert_eq!(stat_field("", 14), None);
        assert_eq!(cpu_time(stat), Some(3.0));
        assert_eq!(start_time(1000.0, stat), Some(1123.45));
        assert_eq!((cpu_time(""), start_time(0.0, "")), (None, None));
        assert_eq!(
            status_field("Name:\tx\nVmRSS:\t  2048 kB\n", "VmRSS:"),
            Some(2048.0)
        );
        assert_eq!(status_field("", "VmRSS:"), None);
    }

    #[test]
    fn every_metric_is_there_and_plausible() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector));
        let text = Exposition::encode(&registry);
        assert!(text.value("process_resident_memory_bytes") > 1e6);
        assert!(text.value("process_virtual_memory_bytes") > 1e6);
        assert!(text.value("process_max_fds") >= 3.0);
        assert!(text.value("process_open_fds") >= 3.0);
        assert!(text.value("process_cpu_seconds_total") >= 0.0);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        let started = text.value("process_start_time_seconds");
        assert!((now - 86_400.0..now + 60.0).contains(&started), "{started}");
        assert!(text.value("process_cpu_seconds_total") < 86_400.0);
    }
}
