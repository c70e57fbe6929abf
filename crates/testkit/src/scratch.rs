//! A temporary directory that is also removed at the end of the process, since statics (the shared
//! cluster) are never dropped and a data directory of etcd has 64 MB and more.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use tempfile::TempDir;

/// Waits for the end of its standard input, which means that the owner is gone. Retries, since the
/// processes that write there may be dying at the same moment.
const JANITOR: &str = r#"trap '' INT TERM HUP
cat >/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$1" 2>/dev/null && break; sleep 0.2; done"#;

/// A directory and the child process that removes it.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: TempDir,
    janitor: Child,
}

impl Scratch {
    pub(crate) fn new(prefix: &str) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix(prefix).tempdir()?;
        let janitor = Command::new("sh")
            .args(["-c", JANITOR, "janitor"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start sh")?;
        Ok(Self { dir, janitor })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_removed_when_the_pipe_closes() {
        let mut scratch = Scratch::new("rolegate-scratch-").unwrap();
        let file = scratch.path().join("file");
        std::fs::write(&file, "x").unwrap();
        drop(scratch.janitor.stdin.take());
        scratch.janitor.wait().unwrap();
        assert!(!scratch.path().exists());
    }
}
