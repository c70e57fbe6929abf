//! A network namespace: created, entered, removed.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The prefix of all lab names, followed by the process ID.
pub(super) const PREFIX: &str = "rolegate-lab-";
/// The directory where `ip netns` keeps namespaces.
const DIR: &str = "/run/netns";
/// The directory where `ip netns exec` finds replacements for files in /etc.
const ETC: &str = "/etc/netns";
/// Time that an interface may take to come up.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A network namespace, removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new(name: String) -> anyhow::Result<Self> {
        ip(&["netns", "add", &name])?;
        let netns = Self { name };
        // Makes addresses usable at once, link-local ones too.
        for scope in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
        }
        netns.exec("ip link set lo up")?;
        Ok(netns)
    }

    /// Returns its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the path of its file.
    pub fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    /// Runs a closure in the namespace, on a thread of its own.
    ///
    /// # Errors
    /// Returns an error if the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        in_netns(&self.path(), work)
    }

    /// Runs a command in the namespace, split at spaces, and returns its output.
    ///
    /// # Errors
    /// Returns an error with the output if the command fails.
    pub fn exec(&self, command: &str) -> anyhow::Result<String> {
        let mut words = command.split_whitespace();
        let program = words.next().context("no command")?;
        let output = self
            .run(|| {
                Command::new(program)
                    .args(words)
                    .stdin(Stdio::null())
                    .output()
            })?
            .with_context(|| format!("cannot run {program}: is it installed?"))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "`{command}` in {}: {}{stdout}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(stdout)
    }

    /// Returns a command that runs in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Resolves `host` to these addresses for commands of [`Namespace::command`] that start from
    /// now on, as the cluster's DNS would.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn set_host(&self, host: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let dir = Path::new(ETC).join(&self.name);
        fs::create_dir_all(&dir)?;
        let lines = addresses
            .iter()
            .map(|address| format!("{address} {host}\n"));
        let lines = std::iter::once("127.0.0.1 localhost\n".to_owned()).chain(lines);
        Ok(fs::write(dir.join("hosts"), lines.collect::<String>())?)
    }

    /// Sets a kernel parameter, given as a path under `/proc/sys`.
    ///
    /// # Errors
    /// Returns an error if the kernel does not have it.
    pub fn sysctl(&self, parameter: &str, value: &str) -> anyhow::Result<()> {
        self.run(|| fs::write(Path::new("/proc/sys").join(parameter), value))?
            .with_context(|| format!("cannot set {parameter}"))
    }

    pub(super) fn address(&self, interface: &str, v4: &str, v6: &str) -> anyhow::Result<()> {
        self.exec(&format!("ip addr add {v4} dev {interface}"))?;
        self.exec(&format!("ip addr add {v6} dev {interface} nodad"))?;
        Ok(())
    }

    /// Waits until an interface has a carrier and usable addresses. The kernel takes time for both,
    /// and until then packets are lost.
    pub(super) fn settle(&self, interface: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let link = self.exec(&format!("ip -o link show dev {interface}"))?;
            let tentative = self.exec(&format!("ip -6 -o addr show dev {interface} tentative"))?;
            if link.contains("state UP") && tentative.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{interface} in {} does not come up: {link}",
                self.name
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn default_route(&self, v4: &str, v6: &str) -> anyhow::Result<()> {
        self.exec(&format!("ip route add default via {v4}"))?;
        self.exec(&format!("ip -6 route add default via {v6}"))?;
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn remove(name: &str) {
    let _ = ip(&["netns", "del", name]);
    let _ = fs::remove_dir_all(Path::new(ETC).join(name));
}

/// Runs a closure in the network namespace at `path`, on a thread of its own. Sockets, threads and
/// processes that it creates belong to that namespace.
///
/// # Errors
/// Returns an error if the namespace cannot be entered. A panic of the closure is propagated.
pub fn in_netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    thread::scope(|scope| {
        let entered = scope.spawn(|| {
            let file = File::open(path)?;
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            std::io::Result::Ok(work())
        });
        match entered.join() {
            Ok(result) => {
                result.with_context(|| format!("cannot enter the namespace {}", path.display()))
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Removes the namespaces of test processes that have exited.
pub(super) fn sweep() {
    let Ok(entries) = fs::read_dir(DIR) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if let Some(pid) = process
            && !Path::new("/proc").join(pid.to_string()).exists()
        {
            remove(&name);
        }
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip")
        .args(args)
        .output()
        .context("cannot run ip: install iproute2")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
