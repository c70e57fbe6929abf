//! The demo's output in the terminal, with colours if it supports them.

use std::io::{self, StdoutLock, Write};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};

use super::report::{Exchange, Report, Step, Suggestion};

const TITLE: Style = Style::new().bold();
const POD: Style = AnsiColor::Cyan.on_default();
const FAINT: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Formats the complete report.
pub type Render = Box<dyn Fn(&Report) -> anyhow::Result<String>>;

/// The reader of standard output is gone, which ends the demo.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub struct Closed;

/// The terminal, locked for the whole demo.
pub(super) struct Screen {
    out: AutoStream<StdoutLock<'static>>,
    /// The format of the complete report; `None` to print the steps one by one as text.
    render: Option<Render>,
    /// The first write error. Nothing is written after it.
    failed: Option<io::Error>,
}

impl Screen {
    /// Creates a screen that stays empty until the end if `render` formats the report.
    pub(super) fn new(render: Option<Render>) -> Self {
        Self {
            out: AutoStream::auto(io::stdout().lock()),
            render,
            failed: None,
        }
    }

    /// Returns whether all writes succeeded so far.
    ///
    /// # Errors
    /// Returns the first write error.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match self.failed.take() {
            None => Ok(()),
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
            Some(error) => Err(error.into()),
        }
    }

    /// Prints the introduction.
    pub(super) fn opening(&mut self, network: &str) {
        self.line(format_args!(
            "{TITLE}rolegate demo{TITLE:#}: the real agent, with stand-ins for AWS STS, the \
             instance metadata service and Kubernetes\n{FAINT}{network}{FAINT:#}"
        ));
    }

    /// Prints the title of a step.
    pub(super) fn title(&mut self, number: usize, title: &str) {
        self.line(format_args!("\n{TITLE}{number:2}  {title}{TITLE:#}"));
    }

    /// Prints a request and its response.
    pub(super) fn exchange(&mut self, exchange: &Exchange) {
        let Exchange {
            pod,
            typed,
            status,
            answer,
            ..
        } = exchange;
        let style = if *status == Some(200) { GOOD } else { BAD };
        let status = status.map_or("---".into(), |status| status.to_string());
        self.line(format_args!(
            "    {POD}{pod}{POD:#} $ {typed}\n      {style}{status}{style:#}  {answer}"
        ));
    }

    /// Prints an event other than the requests.
    pub(super) fn note(&mut self, note: &str) {
        self.line(format_args!("    {FAINT}{note}{FAINT:#}"));
    }

    /// Prints the result of a step.
    pub(super) fn verdict(&mut self, step: &Step) {
        match &step.fault {
            None => self.line(format_args!("    {GOOD}✓{GOOD:#} {}", step.why)),
            Some(fault) => {
                self.line(format_args!(
                    "    {BAD}✗ {fault}{BAD:#}\n      {}",
                    step.why
                ));
            }
        }
    }

    /// Prints the number of steps that succeeded.
    pub(super) fn summary(&mut self, steps: &[Step]) {
        let wrong: Vec<_> = steps
            .iter()
            .filter(|step| !step.ok)
            .map(|step| step.name)
            .collect();
        let all = steps.len();
        if wrong.is_empty() {
            self.line(format_args!("\n{GOOD}All {all} steps succeeded.{GOOD:#}"));
        } else {
            let names = wrong.join(", ");
            let count = wrong.len();
            self.line(format_args!(
                "\n{BAD}{count} of {all} steps failed: {names}{BAD:#}"
            ));
        }
    }

    /// Prints the suggested commands.
    pub(super) fn suggestions(&mut self, suggestions: &[Suggestion]) {
        self.line(format_args!(
            "\n{TITLE}The demo keeps running until Ctrl-C. Try:{TITLE:#}"
        ));
        for Suggestion { what, command } in suggestions {
            self.line(format_args!("  {FAINT}# {what}{FAINT:#}\n  {command}"));
        }
    }

    /// Prints the last line.
    pub(super) fn closing(&mut self) {
        self.line(format_args!("\nThe demo is over."));
    }

    /// Prints the complete report for programs.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub(super) fn report(&mut self, report: &Report) -> anyhow::Result<()> {
        let Some(render) = &self.render else {
            return Ok(());
        };
        let text = render(report)?;
        let written = self.out.write_all(text.as_bytes());
        self.failed = written.and_then(|()| self.out.flush()).err();
        self.check()
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        if self.render.is_none() && self.failed.is_none() {
            let written = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
            self.failed = written.err();
        }
    }
}
