//! What the demo shows in the terminal, in colour where there is one that wants it.

use std::io::{self, StdoutLock, Write};

use anstream::AutoStream;
use clap::builder::styling::{AnsiColor, Style};
use rolegate_policy::document;

use super::report::{Exchange, Report, Step, Suggestion};
use crate::output::{Closed, Format};

const TITLE: Style = Style::new().bold();
const POD: Style = AnsiColor::Cyan.on_default();
const FAINT: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// The terminal, held for the whole demo.
#[derive(Debug)]
pub(super) struct Screen {
    out: AutoStream<StdoutLock<'static>>,
    /// How the steps are told: one by one as text, or all at the end.
    format: Format,
    /// The first thing that could not be written; nothing is written after it.
    failed: Option<io::Error>,
}

impl Screen {
    /// A screen that stays empty before the end unless text is wanted.
    pub(super) fn new(format: Format) -> Self {
        Self {
            out: AutoStream::auto(io::stdout().lock()),
            format,
            failed: None,
        }
    }

    /// Whether everything could be written so far.
    ///
    /// # Errors
    /// What could not.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match self.failed.take() {
            None => Ok(()),
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
            Some(error) => Err(error.into()),
        }
    }

    fn is_text(&self) -> bool {
        matches!(self.format, Format::Text | Format::Wide)
    }

    /// What this is, before anything happens.
    pub(super) fn opening(&mut self, network: &str) {
        self.line(format_args!(
            "{TITLE}rolegate demo{TITLE:#}: the real agent, with stand-ins for AWS STS, the \
             instance metadata service and Kubernetes\n{FAINT}{network}{FAINT:#}"
        ));
    }

    /// The begin of a step.
    pub(super) fn title(&mut self, number: usize, title: &str) {
        self.line(format_args!("\n{TITLE}{number:2}  {title}{TITLE:#}"));
    }

    /// A request and its answer.
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

    /// Something that happens beside the requests.
    pub(super) fn note(&mut self, note: &str) {
        self.line(format_args!("    {FAINT}{note}{FAINT:#}"));
    }

    /// The end of a step.
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

    /// How many steps went as they should.
    pub(super) fn summary(&mut self, steps: &[Step]) {
        let wrong: Vec<_> = steps
            .iter()
            .filter(|step| !step.ok)
            .map(|step| step.name)
            .collect();
        let all = steps.len();
        if wrong.is_empty() {
            self.line(format_args!(
                "\n{GOOD}All {all} steps went as promised.{GOOD:#}"
            ));
        } else {
            let names = wrong.join(", ");
            let count = wrong.len();
            self.line(format_args!(
                "\n{BAD}{count} of {all} steps went wrong: {names}{BAD:#}"
            ));
        }
    }

    /// What may be tried now.
    pub(super) fn suggestions(&mut self, suggestions: &[Suggestion]) {
        self.line(format_args!(
            "\n{TITLE}It stays up until Ctrl-C. Try:{TITLE:#}"
        ));
        for Suggestion { what, command } in suggestions {
            self.line(format_args!("  {FAINT}# {what}{FAINT:#}\n  {command}"));
        }
    }

    /// The last words.
    pub(super) fn closing(&mut self) {
        self.line(format_args!("\nThe demo is over."));
    }

    /// Everything at once, for machines.
    ///
    /// # Errors
    /// When it can't be written.
    pub(super) fn report(&mut self, report: &Report) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Text | Format::Wide => return Ok(()),
            Format::Name => report
                .steps
                .iter()
                .map(|step| format!("{}\n", step.name))
                .collect(),
            Format::Json => format!("{:#}\n", serde_json::to_value(report)?),
            Format::Yaml => document::yaml(&serde_json::to_value(report)?)?,
        };
        let written = self.out.write_all(text.as_bytes());
        self.failed = written.and_then(|()| self.out.flush()).err();
        self.check()
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        if self.is_text() && self.failed.is_none() {
            let written = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
            self.failed = written.err();
        }
    }
}
