//! Tests of the memory of the real program that the kernel exposes to other processes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rolegate_testkit::Rolegate;

/// An ordinary user, whose own processes may be read and dumped.
const UNPRIVILEGED: u32 = 65_534;
const LONG: Duration = Duration::from_secs(60);

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts a program as an ordinary user.
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .arg(program)
            .args(arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(
            command
                .spawn()
                .expect("setpriv is missing: install util-linux"),
        )
    }

    /// Returns the owner of the process's files in /proc: the user if other processes of the user
    /// can read its memory, and root if it cannot be dumped.
    fn owner(&self) -> Option<u32> {
        let folder = Path::new("/proc").join(self.0.id().to_string());
        Some(fs::metadata(folder.join("mem")).ok()?.uid())
    }

    /// Returns the name of the running program.
    fn program(&self) -> Option<String> {
        let folder = Path::new("/proc").join(self.0.id().to_string());
        Some(
            fs::read_to_string(folder.join("comm"))
                .ok()?
                .trim()
                .to_owned(),
        )
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < end, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn rule_06_no_process_that_holds_secrets_can_be_dumped() -> anyhow::Result<()> {
    // The binary is in a directory that an ordinary user can read.
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("rolegate");
    fs::copy(Rolegate::path()?, &program)?;
    for path in [folder.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    let program = program.display().to_string();

    let other = Running::start("sleep", &["600"]);
    eventually("sleep runs", || other.program().as_deref() == Some("sleep"));
    assert_eq!(
        other.owner(),
        Some(UNPRIVILEGED),
        "the look tells both apart"
    );

    // No API server exists, so each command keeps retrying.
    let api = "--api-server=http://127.0.0.1:9";
    let admin = "--metrics-address=127.0.0.1:0";
    let commands: [&[&str]; 4] = [
        &[
            "agent",
            api,
            admin,
            "--node=a",
            "--redirect=none",
            "--app-port=0",
            "--runtime-dir=",
        ],
        &[
            "broker",
            api,
            admin,
            "--listen-address=127.0.0.1:0",
            "--metadata-addr=127.0.0.1:9",
            "--ledger-address=127.0.0.1:0",
        ],
        &["admission", api, admin, "--listen-address=127.0.0.1:0"],
        &["controller", api, admin],
    ];
    for arguments in commands {
        let running = Running::start(&program, arguments);
        // Until the process has set it, or has exited, which would leave no owner.
        eventually(&format!("{arguments:?}"), || {
            running.program().as_deref() == Some("rolegate") && running.owner() == Some(0)
        });
    }
    Ok(())
}
