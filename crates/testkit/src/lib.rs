//! Test environments: a real Kubernetes API server ([`cluster`]), pods in network namespaces
//! ([`lab`]), a whole cluster whose nodes run pods ([`nodes`]), the real `rolegate` binary
//! ([`binary`]), an independent STS server and unmodified SDKs ([`python`]). A missing prerequisite
//! fails the test with an error; nothing is skipped.
//!
//! Child processes never outlive the test process ([`process`]).

pub mod admission;
pub mod binary;
mod ca;
pub mod cases;
pub mod cluster;
mod forward;
mod kubeconfig;
pub mod lab;
pub mod nodes;
mod objects;
pub mod process;
pub mod promlint;
pub mod promtool;
pub mod python;
pub mod request;
mod scratch;
mod wait;

pub use admission::TestAdmission;
pub use binary::Rolegate;
pub use cluster::Cluster;
pub use forward::Forward;
pub use nodes::{TestCluster, TestNode};
pub use objects::TestPod;
pub use python::Moto;
pub use wait::eventually;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// Returns the root of the repository that this crate was built from.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Runs a `hack/` script that builds something once and prints its path. Its progress goes to the
/// test's standard error, so that a first build of minutes does not look like a hang.
///
/// # Errors
/// Returns an error if the script is missing or fails.
fn hack(script: &str, args: &[&str]) -> anyhow::Result<PathBuf> {
    let path = repository().join("hack").join(script);
    let output = Command::new(&path)
        .args(args)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", path.display()))?;
    ensure!(
        output.status.success(),
        "hack/{script} failed: run `make setup`, which says what is missing"
    );
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}
