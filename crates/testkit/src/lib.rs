//! What the tests need beyond Rust's own harness: a real Kubernetes API server ([`cluster`]), pods
//! out of network namespaces ([`lab`]), a whole cluster whose nodes run pods ([`nodes`]), the real
//! `rolegate` binary ([`binary`]), an STS server that none of us wrote and unmodified SDKs
//! ([`python`]). Prerequisites that are missing fail a test
//! with a sentence; nothing is skipped.
//!
//! Every child process lives at most as long as the test process ([`process`]).

pub mod binary;
mod ca;
pub mod cases;
pub mod cluster;
mod forward;
pub mod gate;
mod kubeconfig;
pub mod lab;
pub mod nodes;
mod objects;
pub mod process;
pub mod promlint;
pub mod python;
pub mod request;
mod scratch;
mod wait;

pub use binary::Rolegate;
pub use cluster::Cluster;
pub use forward::Forward;
pub use gate::Gate;
pub use nodes::{TestCluster, TestNode};
pub use objects::TestPod;
pub use python::Moto;
pub use wait::eventually;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// The root of the clone this crate was built in.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Runs one of the `hack/` scripts that build something once and print where it is. Their progress
/// goes to the test's standard error, so that a first build of minutes doesn't look like a hang.
///
/// # Errors
/// When the script is missing or fails.
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
