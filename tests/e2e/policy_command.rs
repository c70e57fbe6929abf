//! Runs `rolegate policy` like a user with a kubeconfig.

use std::path::Path;

use anyhow::Context;
use rolegate_testkit::Rolegate;
use serde_json::Value;

/// The output of a command, and its exit code.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("{}{}", self.out, self.err))
    }

    /// Returns the objects of a stream of YAML.
    pub(crate) fn objects(&self) -> anyhow::Result<Vec<Value>> {
        Ok(serde_saphyr::from_multiple(&self.out)?)
    }

    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub(crate) fn fails_for(self, why: &str) {
        assert_eq!(self.code, 1, "{}{}", self.out, self.err);
        assert!(self.err.contains(why), "{why}: {}", self.err);
        assert_eq!(self.out, "");
    }
}

/// Runs `rolegate policy` with a kubeconfig.
pub(crate) async fn run_as(kubeconfig: &Path, arguments: &[&str]) -> anyhow::Result<Ran> {
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let all = [&["policy"][..], arguments, &[&kubeconfig]].concat();
    let output = Rolegate::output(&all).await?;
    Ok(Ran {
        code: output.status.code().context("killed")?,
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}
