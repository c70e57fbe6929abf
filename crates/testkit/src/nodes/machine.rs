//! Checks of the machine that runs test clusters: its kernel parameters must not change, and
//! nothing with a cluster's name may be left.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// The state that must not change, by path: the value of a kernel parameter, or whether a file
/// exists.
pub type State = BTreeMap<String, String>;

/// Default directories of Kubernetes and containerd.
const DEFAULTS: [&str; 8] = [
    "/etc/cni",
    "/etc/kubernetes",
    "/opt/cni",
    "/opt/containerd",
    "/run/containerd",
    "/usr/libexec/kubernetes",
    "/var/lib/cni",
    "/var/lib/kubelet",
];
/// Parameters that change by themselves.
const MOVING: [&str; 5] = [
    "ns_last_pid",
    "perf_event_max_sample_rate",
    "pty",
    "random",
    "sched_domain",
];

/// Returns the state before the first cluster of this process started.
///
/// # Errors
/// As [`state`].
pub fn state_at_first() -> anyhow::Result<&'static State> {
    static FIRST: OnceLock<State> = OnceLock::new();
    if let Some(first) = FIRST.get() {
        return Ok(first);
    }
    let now = state()?;
    Ok(FIRST.get_or_init(|| now))
}

/// Reads all parameters of `vm` and `kernel`, the limits of connection tracking, and the existence
/// of the default directories of Kubernetes and containerd.
///
/// # Errors
/// Returns an error if there is no `/proc/sys`.
pub fn state() -> anyhow::Result<State> {
    let mut found = BTreeMap::new();
    for folder in ["/proc/sys/vm", "/proc/sys/kernel"] {
        read(Path::new(folder), &mut found)?;
    }
    // Missing until the module is loaded.
    for name in ["nf_conntrack_max", "netfilter/nf_conntrack_buckets"] {
        let path = Path::new("/proc/sys/net").join(name);
        if let Ok(value) = fs::read_to_string(&path) {
            found.insert(path.display().to_string(), value);
        }
    }
    for path in DEFAULTS {
        found.insert(path.to_owned(), Path::new(path).exists().to_string());
    }
    Ok(found)
}

fn read(folder: &Path, found: &mut State) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if MOVING.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            read(&entry.path(), found)?;
        } else if let Ok(value) = fs::read_to_string(entry.path()) {
            // Write-only parameters are not state.
            found.insert(entry.path().display().to_string(), value);
        }
    }
    Ok(())
}

/// Lists everything on the machine that has this name as part of its own: network namespaces,
/// cgroups, mounts, directories and processes, one per line.
///
/// # Errors
/// Returns an error if these cannot be read.
pub fn leftovers(name: &str) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    let temporary = std::env::temp_dir();
    let cgroups = Path::new("/sys/fs/cgroup");
    let mut folders = vec![temporary, "/run/netns".into(), cgroups.to_owned()];
    for hierarchy in fs::read_dir(cgroups)? {
        folders.push(hierarchy?.path());
    }
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(name) {
                left.push(format!("path {}", entry.path().display()));
            }
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let named = mounts.lines().filter(|line| line.contains(name));
    left.extend(named.map(|line| format!("mount {line}")));
    for process in fs::read_dir("/proc")? {
        let path = process?.path();
        // Processes come and go, and not every entry of /proc is a process.
        let Ok(command) = fs::read(path.join("cmdline")) else {
            continue;
        };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(name) {
            left.push(format!("process {} {command}", path.display()));
        }
    }
    Ok(left)
}
