//! A helper process of this program that exchanges lines of JSON. It exits when its standard input
//! is closed, so it never outlives its parent.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Helper {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts this program with another command.
    pub(crate) fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self {
            input: child.stdin.take().context("no standard input")?,
            output: BufReader::new(child.stdout.take().context("no standard output")?),
            child,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends one line.
    pub(crate) fn tell(&mut self, order: &impl Serialize) -> anyhow::Result<()> {
        write_line(&mut self.input, order)
    }

    /// Reads one line.
    pub(crate) fn hear<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        ensure!(
            self.output.read_line(&mut line)? > 0,
            "a helper process ended early"
        );
        Ok(serde_json::from_str(&line)?)
    }

    /// Sends one line and reads the response.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, order: &impl Serialize) -> anyhow::Result<T> {
        self.tell(order)?;
        self.hear()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Both fail only if it has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes and flushes one line of JSON.
pub(crate) fn write_line(to: &mut impl Write, value: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)?;
    Ok(to.flush()?)
}
