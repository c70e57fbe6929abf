//! What a test cluster must leave alone: the machine's kernel parameters, and everything that has a
//! cluster's name once the cluster is gone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// What is to stay as it is, by path: a kernel parameter's value, or whether there is such a file.
pub type State = BTreeMap<String, String>;

/// Where Kubernetes and containerd write if nobody says otherwise.
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

/// The kernel's parameters before the first cluster of this process started.
///
/// # Errors
/// As [`kernel_parameters`].
pub fn state_at_first() -> anyhow::Result<&'static State> {
    static FIRST: OnceLock<State> = OnceLock::new();
    if let Some(first) = FIRST.get() {
        return Ok(first);
    }
    let now = state()?;
    Ok(FIRST.get_or_init(|| now))
}

/// The values of all parameters of `vm` and `kernel` and of connection tracking as a whole, and
/// which of the folders are there that Kubernetes and containerd make by default.
///
/// # Errors
/// When there is no `/proc/sys`.
pub fn state() -> anyhow::Result<State> {
    let mut found = BTreeMap::new();
    for folder in ["/proc/sys/vm", "/proc/sys/kernel"] {
        read(Path::new(folder), &mut found)?;
    }
    // Missing where the module isn't there yet.
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
            // Those that can only be written aren't state.
            found.insert(entry.path().display().to_string(), value);
        }
    }
    Ok(())
}

/// Everything on the machine that has this name in its own: network namespaces, cgroups, mounts,
/// folders and processes, one a line.
///
/// # Errors
/// When it can't be looked at.
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
        // Processes come and go, and files of /proc aren't processes.
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
