//! Measures the release binary against the numbers that docs/benchmarks.md promises.
//!
//! Everything runs on loopback: stand-ins for AWS and Kubernetes in one process, the agent, the
//! broker or the admission webhook in another, the load generator in this one. Absolute times depend on the machine; the ratios to a
//! bare hyper server that sends the same bytes in the same minute don't, or little. A missed number
//! is shown; a wrong answer makes the run fail.

mod agent;
mod bare;
mod broker;
mod change;
mod child;
mod client;
mod cluster;
mod cold;
mod decision;
mod gate;
mod load;
mod memory;
mod proc;
mod refusals;
mod report;
mod review;
mod rolegate;
mod stage;
mod stand_ins;
mod start;
mod through;
mod transport;
mod warm;
mod webhook;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::report::{Results, Row};
use crate::stage::Bench;

/// Most threads that the agent takes by itself.
const MOST_THREADS: usize = 4;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Process>,
    /// The rolegate binary; by default the one beside this program
    #[arg(long, value_name = "FILE")]
    rolegate: Option<PathBuf>,
    /// Where the results are written as JSON, besides standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure these only
    #[arg(long, value_name = "PART", value_parser = PARTS.map(|(name, _)| name))]
    only: Vec<String>,
}

/// The processes that this program starts of itself.
#[derive(Debug, Subcommand)]
enum Process {
    #[command(hide = true)]
    StandIns,
    #[command(hide = true)]
    Bare { threads: usize },
    /// Run a cluster of 1,000 nodes with three brokers, of which one is killed
    Scale,
}

type Part = (&'static str, fn(&Bench) -> anyhow::Result<Vec<Row>>);

const SCALE: [Part; 1] = [("scale", broker::scale::run)];

const PARTS: [Part; 14] = [
    ("warm", warm::run),
    ("through", through::run),
    ("cold", cold::run),
    ("start", start::run),
    ("refusals", refusals::run),
    ("memory", memory::run),
    ("admission", gate::grants),
    ("rego", gate::rego),
    ("change", change::run),
    ("decision", decision::run),
    ("broker-pods", broker::pods::run),
    ("broker-memory", broker::idle::run),
    ("broker-agent", broker::agent::run),
    ("broker-calls", broker::calls::run),
];

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Process::StandIns) => stand_ins::run().map(|()| ExitCode::SUCCESS),
        Some(Process::Bare { threads }) => bare::run(threads).map(|()| ExitCode::SUCCESS),
        Some(Process::Scale) => measure(&arguments, &SCALE),
        None => measure(&arguments, &PARTS),
    }
}

fn measure(arguments: &Arguments, parts: &[Part]) -> anyhow::Result<ExitCode> {
    let processors = std::thread::available_parallelism()?.get();
    let bench = Bench {
        rolegate: match &arguments.rolegate {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("rolegate"),
        },
        threads: processors.min(MOST_THREADS),
    };
    let mut results = Results {
        processors,
        threads: bench.threads,
        rows: Vec::new(),
        failed: Vec::new(),
    };
    for (name, run) in parts {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|only| only == *name) {
            continue;
        }
        writeln!(std::io::stderr(), "measuring: {name}")?;
        match run(&bench) {
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
    Ok(match results.failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
