//! One network namespace: made, entered, removed.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What the names of all labs begin with; the process id follows.
pub(super) const PREFIX: &str = "rolegate-lab-";
/// Where `ip netns` keeps them.
const DIR: &str = "/run/netns";
/// Where `ip netns exec` finds files that stand in for those of /etc.
const ETC: &str = "/etc/netns";
/// How long an interface may take to come up.
const SETTLE: Duration = Duration::from_secs(30);

/// A network namespace of its own, removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new(name: String) -> anyhow::Result<Self> {
        ip(&["netns", "add", &name])?;
        let netns = Self { name };
        // Addresses are to be usable at once, link-local ones too.
        for scope in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
        }
        netns.exec("ip link set lo up")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    /// Runs a closure in it, on a thread of its own.
    ///
    /// # Errors
    /// When it can't be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        in_netns(&self.path(), work)
    }

    /// Runs a command in it, words split at spaces, and gives what it printed.
    ///
    /// # Errors
    /// When it fails, with all that it said.
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

    /// A command that will run in it, whoever starts it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Lets commands of [`Namespace::command`] that start from now on find `host` at these addresses,
    /// as if the cluster's DNS said so.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn set_host(&self, host: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let dir = Path::new(ETC).join(&self.name);
        fs::create_dir_all(&dir)?;
        let lines = addresses
            .iter()
            .map(|address| format!("{address} {host}\n"));
        let lines = std::iter::once("127.0.0.1 localhost\n".to_owned()).chain(lines);
        Ok(fs::write(dir.join("hosts"), lines.collect::<String>())?)
    }

    /// Sets a kernel parameter, a path under `/proc/sys`.
    ///
    /// # Errors
    /// When the kernel doesn't have it.
    pub fn sysctl(&self, parameter: &str, value: &str) -> anyhow::Result<()> {
        self.run(|| fs::write(Path::new("/proc/sys").join(parameter), value))?
            .with_context(|| format!("cannot set {parameter}"))
    }

    pub(super) fn address(&self, interface: &str, v4: &str, v6: &str) -> anyhow::Result<()> {
        self.exec(&format!("ip addr add {v4} dev {interface}"))?;
        self.exec(&format!("ip addr add {v6} dev {interface} nodad"))?;
        Ok(())
    }

    /// Waits until an interface has a carrier and its addresses can be used: the kernel sees to
    /// both in its own time, and until then packets are lost.
    pub(super) fn settle(&self, interface: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + SETTLE;
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

/// Runs a closure in the network namespace at `path`, on a thread of its own: sockets it makes,
/// threads and processes it starts belong there.
///
/// # Errors
/// When the namespace can't be entered. A panic of the closure goes on in the caller.
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

/// Removes the namespaces of test processes that are gone.
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
