//! placeholder
use std::process::ExitCode;
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArguments {}
pub(crate) fn run(_: &DemoArguments) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not yet")
}
