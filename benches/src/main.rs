//! Measures the release binary against the targets in docs/benchmarks.md.
//!
//! Everything runs on loopback: stand-ins for AWS and Kubernetes in one process, the agent, the
//! broker or the admission webhook in another, the load generator in this one. Absolute times
//! depend on the machine. Ratios to a baseline hyper server that sends the same bytes in the same
//! minute depend on it little or not at all. A missed target is reported; a wrong response fails
//! the run.

mod admission;
mod agent;
mod baseline;
mod broker;
mod change;
mod child;
mod client;
mod cluster;
mod cold;
mod decision;
mod harness;
mod load;
mod memory;
mod passthrough;
mod proc;
mod refusals;
mod report;
mod review;
mod rolegate;
mod stand_ins;
mod start;
mod tokens;
mod transport;
mod warm;
mod webhook;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::harness::Settings;
use crate::report::{Results, Row};

/// Maximum number of threads that the agent uses by default.
const MAX_THREADS: usize = 4;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Process>,
    /// The rolegate binary [default: the one next to this program]
    #[arg(long, value_name = "FILE")]
    rolegate: Option<PathBuf>,
    /// File for the results as JSON, in addition to standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run only these benchmarks
    #[arg(long, value_name = "PART", value_parser = PARTS.map(|(name, _)| name))]
    only: Vec<String>,
}

/// The helper processes of this program.
#[derive(Debug, Subcommand)]
enum Process {
    #[command(hide = true)]
    StandIns,
    #[command(hide = true)]
    Baseline { threads: usize },
    /// Run a cluster of 1,000 nodes with three brokers, one of which is killed
    Scale,
}

type Part = (&'static str, fn(&Settings) -> anyhow::Result<Vec<Row>>);

const SCALE: [Part; 1] = [("scale", broker::scale::run)];

const PARTS: [Part; 15] = [
    ("warm", warm::run),
    ("through", passthrough::run),
    ("cold", cold::run),
    ("start", start::run),
    ("refusals", refusals::run),
    ("memory", memory::run),
    ("admission", admission::grants),
    ("rego", admission::rego),
    ("change", change::run),
    ("decision", decision::run),
    ("tokens", tokens::run),
    ("broker-pods", broker::pods::run),
    ("broker-memory", broker::idle::run),
    ("broker-agent", broker::agent::run),
    ("broker-calls", broker::calls::run),
];

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Process::StandIns) => stand_ins::run().map(|()| ExitCode::SUCCESS),
        Some(Process::Baseline { threads }) => baseline::run(threads).map(|()| ExitCode::SUCCESS),
        Some(Process::Scale) => measure(&arguments, &SCALE),
        None => measure(&arguments, &PARTS),
    }
}

fn measure(arguments: &Arguments, parts: &[Part]) -> anyhow::Result<ExitCode> {
    let processors = std::thread::available_parallelism()?.get();
    let settings = Settings {
        rolegate: match &arguments.rolegate {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("rolegate"),
        },
        threads: processors.min(MAX_THREADS),
    };
    let mut results = Results {
        processors,
        threads: settings.threads,
        rows: Vec::new(),
        failed: Vec::new(),
    };
    for (name, run) in parts {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|only| only == *name) {
            continue;
        }
        writeln!(std::io::stderr(), "measuring: {name}")?;
        match run(&settings) {
            Ok(rows) => {
                for row in &rows {
                    writeln!(std::io::stderr(), "  {}: {}", row.what, row.measured)?;
                }
                results.rows.extend(rows);
            }
            Err(error) => {
                writeln!(std::io::stderr(), "  wrong: {error:#}")?;
                results.failed.push(format!("{name}: {error:#}"));
            }
        }
    }
    results.write(&mut std::io::stdout())?;
    if let Some(path) = &arguments.json {
        let mut file = File::create(path)?;
        serde_json::to_writer_pretty(&file, &results)?;
        writeln!(file)?;
    }
    Ok(if results.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
