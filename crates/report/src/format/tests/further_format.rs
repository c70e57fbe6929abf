//! A further format in one file: a table in Markdown, such as for a comment on a pull request.

use std::fmt::Write;

use rolegate_core::text::plain;

use super::*;
use crate::cases::CaseResult;

pub(super) const FORMAT: Format = Format {
    name: "markdown",
    help: "Table in Markdown",
    renderer: Renderer::Cases(render),
};

fn render(cases: &Cases) -> String {
    let mut text = "| case | result | reasons |\n| --- | --- | --- |\n".to_owned();
    for case in cases.all() {
        let (result, reasons) = match &case.result {
            CaseResult::Passed => ("passed", Vec::new()),
            CaseResult::Skipped(_) => ("skipped", Vec::new()),
            CaseResult::Failed(reasons) => {
                ("failed", reasons.iter().map(|one| &*one.kind).collect())
            }
            CaseResult::Errored(reason) => ("error", vec![&**reason]),
        };
        let name = plain(&case.name);
        // Writing into a String cannot fail.
        let _ = writeln!(text, "| {name} | {result} | {} |", reasons.join(", "));
    }
    text
}

#[test]
fn a_further_format_shows_findings_and_cases() {
    let findings = FORMAT.findings(&findings::tests::report());
    assert!(
        findings.contains(" | failed | grants: default deny |\n"),
        "{findings}"
    );
    assert!(findings.contains(" | passed |  |\n"), "{findings}");
    assert!(FORMAT.takes_cases());
    let cases = FORMAT.cases(&cases::tests::cases()).unwrap();
    let rows: Vec<_> = cases.lines().skip(2).collect();
    assert_eq!(rows.len(), 4, "{cases}");
    assert!(rows[2].ends_with(" | error | it failed |"), "{cases}");
}
