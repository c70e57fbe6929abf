//! A node and its pods as network namespaces, which are removed on drop.
//!
//! ```text
//!  pod 10.1.0.N ── veth eni… ──── node: 10.0.0.1, and the metadata stand-in 169.254.169.254
//! ```
//! The metadata address is the node's own here: what isn't redirected to the agent reaches the
//! stand-in, as on a real node it reaches the real service.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use rolegate_redirect::rules::METADATA_V4;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::pods::{self, Pod};

/// The prefix of the namespaces' names of all demos, followed by the process ID.
const PREFIX: &str = "rolegate-demo-";
/// The directory of `ip netns`.
const DIR: &str = "/run/netns";
/// The node's address.
pub(super) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The pods' interfaces on the node.
pub(super) const POD_INTERFACES: &str = "eni+";
/// The gateway in the pods' routes.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The namespaces of this demo.
#[derive(Debug)]
pub(super) struct Namespaces(String);

impl Namespaces {
    /// Creates the node and all pods.
    ///
    /// # Errors
    /// Returns an error without the permission, or without `ip` of iproute2.
    pub(super) fn create() -> anyhow::Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "root privileges are required"
        );
        sweep();
        let all = Self(format!("{PREFIX}{}", std::process::id()));
        let node = all.node();
        ip(&["netns", "add", &node], "")?;
        let mut joined = format!(
            "link set lo up\n\
             addr add {NODE_ADDRESS}/32 dev lo\n\
             addr add {GATEWAY}/32 dev lo\n\
             addr add {METADATA_V4}/32 dev lo\n"
        );
        for pod in pods::ALL {
            let (name, address, number) = (all.pod(pod), address(pod), pod.number);
            ip(&["netns", "add", &name], "")?;
            // Writing into a String cannot fail.
            let _ = write!(
                joined,
                "link add eni{number} type veth peer name eth0 netns {name}\n\
                 link set eni{number} up\n\
                 route add {address}/32 dev eni{number}\n"
            );
        }
        ip(&["-netns", &node, "-batch", "-"], &joined)?;
        for pod in pods::ALL {
            let address = address(pod);
            let joined = format!(
                "link set lo up\n\
                 addr add {address}/32 dev eth0\n\
                 link set eth0 up\n\
                 route add default via {GATEWAY} dev eth0 onlink\n"
            );
            ip(&["-netns", &all.pod(pod), "-batch", "-"], &joined)?;
        }
        Ok(all)
    }

    /// Returns the name of the node's namespace.
    pub(super) fn node(&self) -> String {
        format!("{}-node", self.0)
    }

    /// Returns the name of a pod's namespace.
    pub(super) fn pod(&self, pod: &Pod) -> String {
        format!("{}-{}", self.0, pod.name)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        remove(|name| {
            name.strip_prefix(self.0.as_str())
                .is_some_and(|rest| rest.starts_with('-'))
        });
    }
}

/// Returns a pod's address.
pub(super) fn address(pod: &Pod) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, pod.number)
}

/// Runs `work` in a namespace, on its own thread, so that the sockets that it opens and the threads
/// that it starts belong there.
///
/// # Errors
/// Returns an error if the namespace cannot be entered, or if `work` fails.
pub(super) fn within<T: Send>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            let file = File::open(Path::new(DIR).join(name))?;
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        entered
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Removes the namespaces of demos that were killed.
fn sweep() {
    remove(|name| {
        let process = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        process.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    });
}

fn remove(which: impl Fn(&str) -> bool) {
    let Ok(entries) = fs::read_dir(DIR) else {
        return;
    };
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        if which(&name) {
            let _ = ip(&["netns", "delete", &name], "");
        }
    }
}

/// Runs `ip` with a batch on standard input.
fn ip(args: &[&str], batch: &str) -> anyhow::Result<()> {
    let mut child = Command::new("ip")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Ctrl-C is for this process: it must not interrupt the cleanup.
        .process_group(0)
        .spawn()
        .context("cannot run ip (iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        // If `ip` exits early, its own output has the reason.
        let _ = stdin.write_all(batch.as_bytes());
    }
    let output = child
        .wait_with_output()
        .context("cannot run ip (iproute2)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", args.join(" "), said.trim());
    }
    Ok(())
}
