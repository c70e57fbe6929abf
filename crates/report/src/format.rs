//! Formats of reports for other programs.
//!
//! A format is a file in `format/` with a constant of type [`Format`], and a line in [`FORMATS`].

mod github;
mod junit;
mod sarif;
mod tap;

use crate::cases::Cases;
use crate::findings::Findings;

/// All formats, in the order in which help texts list them.
pub const FORMATS: &[Format] = &[sarif::FORMAT, github::FORMAT, junit::FORMAT, tap::FORMAT];

/// A format.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its description in help texts.
    pub help: &'static str,
    renderer: Renderer,
}

/// The input of a format, and the function that renders it.
#[derive(Debug, Clone, Copy)]
enum Renderer {
    /// The format shows findings at their lines.
    Findings(fn(&Findings) -> String),
    /// The format lists cases. Findings become cases, see [`Findings::cases`].
    Cases(fn(&Cases) -> String),
}

impl Format {
    /// Returns whether the format can show test results.
    pub fn takes_cases(&self) -> bool {
        matches!(self.renderer, Renderer::Cases(_))
    }

    /// Renders findings.
    pub fn findings(&self, findings: &Findings) -> String {
        match self.renderer {
            Renderer::Findings(render) => render(findings),
            Renderer::Cases(render) => render(&findings.cases()),
        }
    }

    /// Renders test results. Returns `None` if the format cannot show them.
    pub fn cases(&self, cases: &Cases) -> Option<String> {
        match self.renderer {
            Renderer::Findings(_) => None,
            Renderer::Cases(render) => Some(render(cases)),
        }
    }
}

/// Formats are equal if their names are, since names are unique.
impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Format {}

#[cfg(test)]
mod tests {
    mod further_format;

    use std::collections::BTreeSet;

    use super::*;
    use crate::{cases, findings};

    #[test]
    fn each_format_has_its_own_name_and_shows_findings() {
        let formats = [FORMATS, &[further_format::FORMAT]].concat();
        let names: BTreeSet<_> = formats.iter().map(|format| format.name).collect();
        assert_eq!(names.len(), formats.len());
        for format in formats {
            let text = format.findings(&findings::tests::report());
            assert!(text.ends_with('\n'), "{}: {text}", format.name);
            assert!(text.contains("grant"), "{}: {text}", format.name);
        }
    }
}
