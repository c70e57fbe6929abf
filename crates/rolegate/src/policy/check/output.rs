//! Prints the report of `rolegate policy check`.

use rolegate_core::layer::LayerId;
use rolegate_inventory::basis::Basis;
use rolegate_inventory::names::Names;
use rolegate_policy::check::Report;
use rolegate_report::findings::Findings;
use serde::{Serialize, Serializer};

use super::CheckArguments;
use crate::output::{self, Format, ReportFormat, Shown};

/// The report as an answer of the command.
struct Answer<'a>(&'a Report);

impl Serialize for Answer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.json().serialize(serializer)
    }
}

impl Shown for Answer<'_> {
    fn text(&self, _is_wide: bool) -> String {
        self.0.findings.text()
    }

    /// Returns the names of denied objects.
    fn names(&self) -> Vec<String> {
        self.0.findings.names()
    }
}

/// Replaces the names of policies from files with the files' paths.
pub(super) fn rename(report: &mut Findings, names: &Names) {
    let of_policies = report.findings.iter_mut();
    for finding in of_policies.filter(|finding| finding.category == LayerId::Rego.as_str()) {
        finding.rule = names.shown(&finding.rule).to_owned();
        finding.message = names.in_sentence(&finding.message);
    }
}

/// Prints the report, and its notes on standard error.
///
/// # Errors
/// Returns an error if the report cannot be written.
pub(super) fn write(
    arguments: &CheckArguments,
    report: &Report,
    rules: &Basis,
) -> anyhow::Result<()> {
    let has_room = match arguments.output {
        ReportFormat::Data(format) => format != Format::Name,
        ReportFormat::Exchange(_) => false,
    };
    if !arguments.quiet {
        for note in &report.notes {
            output::note(note);
        }
        if !has_room {
            output::note_rules(rules);
        }
    }
    for unusable in &report.unusable {
        output::failure(unusable);
    }
    let findings = &report.findings;
    match arguments.output {
        ReportFormat::Data(Format::Text | Format::Wide)
            if arguments.quiet && !findings.has_faults() =>
        {
            Ok(())
        }
        ReportFormat::Data(format) => output::answer(format, &Answer(report), rules),
        ReportFormat::Exchange(format) => output::raw(&format.findings(findings)),
    }
}
