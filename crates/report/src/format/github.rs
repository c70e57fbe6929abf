//! Workflow commands, with which GitHub annotates lines.

use super::{Format, Renderer};
use crate::findings::{Findings, Level};

/// The format.
pub(super) const FORMAT: Format = Format {
    name: "github",
    help: "Annotations for GitHub workflows",
    renderer: Renderer::Findings(render),
};

fn render(report: &Findings) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let title = format!("rolegate: {}", finding.object);
        let level = match finding.level {
            Level::Note => "notice",
            level => level.as_str(),
        };
        text.push_str(&format!(
            "::{level} file={},line={},title={}::{}\n",
            property(&finding.location.file),
            finding.location.line,
            property(&title),
            data(&format!(
                "{} ({} {}, rule {})",
                finding.message, report.wording.category, finding.category, finding.rule
            )),
        ));
    }
    text
}

/// Escapes the message of a workflow command, by GitHub's rules.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// Escapes a property of a workflow command, by GitHub's rules.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::tests::report;

    #[test]
    fn threat_25_workflow_commands_cannot_be_forged() {
        assert_eq!(
            render(&report()),
            "::error file=./a b%2Cc%3A%25.yaml,line=7,title=rolegate%3A Pod shop/api::no%0A::error::\
             grant (layer grants, rule default deny)\n"
        );
    }
}
