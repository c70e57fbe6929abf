//! `rolegate policy test`.

mod file;
mod tester;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use regex::Regex;
use rolegate_inventory::ignore::Pattern;
use rolegate_inventory::in_force::FlagSources;
use rolegate_report::EXIT_FINDINGS;

use super::current::flag_sources;
use super::errors::refuse_idle;
use super::files;
use super::flags::LocalFlags;
use crate::flags::invalid;
use crate::output::{self, Format, ReportFormat, case_format};

use tester::Tester;

/// The introduction of the help text.
pub(super) const LONG_ABOUT: &str = "Test rules against objects with expected verdicts, and run tests in Rego.\n\n\
Runs every PolicyTest in the given files and directories, and every rule named test_… in their \
Rego modules, as opa test does. Rules named todo_test_… are skipped. A PolicyTest that names no rules \
uses those of --rules or, without --rules, all rules in the directories themselves.";

/// Arguments of `rolegate policy test`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate policy test policies/
  rolegate policy test tests/ --rules platform/rules/ --coverage
  rolegate policy test policies/ --run 'images' -o junit > junit.xml

Exit codes: 0 every test passed, 1 failed, or there is no test, 3 a test failed, 64 invalid usage.")]
pub(super) struct TestArguments {
    /// Files and directories (recursive) with tests and rules
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// File or directory with rules, in addition to those of the directories for tests in Rego. May be repeated
    #[arg(long, value_name = "PATH")]
    rules: Vec<PathBuf>,
    /// File or directory to skip, in the syntax of .gitignore. May be repeated
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::parse)]
    ignore: Vec<Pattern>,
    /// Run only tests whose names match this regular expression
    #[arg(long, value_name = "REGEX")]
    run: Option<Regex>,
    /// Report which lines of policies and which grants no test used
    #[arg(long)]
    coverage: bool,
    /// Report the tests that passed too
    #[arg(short, long)]
    verbose: bool,
    /// Format of the report
    #[arg(short, long, value_name = "FORMAT", default_value = "text", value_parser = case_format())]
    output: ReportFormat,
    #[command(flatten)]
    read: LocalFlags,
}

/// Runs the command.
pub(super) async fn run(arguments: TestArguments) -> anyhow::Result<ExitCode> {
    let sources = FlagSources {
        guesses: true,
        ..flag_sources(&arguments.read.own()?, None)?
    };
    files::validate(arguments.paths.iter().chain(&arguments.rules))?;
    let mut tester = Tester::read(&arguments, &sources)?;
    let files = std::mem::take(&mut tester.tests);
    for file in &files {
        tester.run_file(file)?;
    }
    tester.run_rego()?;
    let idle: Vec<_> = tester.idle.iter().map(Vec::as_slice).collect();
    refuse_idle(&idle)?;
    let report = tester.report;
    if report.cases.count() == 0 {
        match &arguments.run {
            Some(run) => bail!("no test name matches {run}"),
            None => bail!("found no test: neither a PolicyTest nor a Rego rule named test_…"),
        }
    }
    match arguments.output {
        ReportFormat::Data(Format::Text | Format::Wide) => {
            output::text(&report.text(arguments.verbose, arguments.coverage))?;
        }
        ReportFormat::Data(Format::Name) => output::names(&report.cases.failed_names())?,
        ReportFormat::Data(format) => output::value(format, &report.json())?,
        ReportFormat::Exchange(format) => match format.cases(&report.cases) {
            Some(text) => output::raw(&text)?,
            None => {
                return Err(invalid(
                    "-o: a test report supports text, wide, name, yaml, json, junit and tap",
                ));
            }
        },
    }
    Ok(if report.cases.has_passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FINDINGS)
    })
}
