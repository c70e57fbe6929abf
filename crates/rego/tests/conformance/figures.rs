//! The results of each family, and their table in `docs/reference/rego.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::families;
use crate::suite::Verdict;

/// The number of cases with each verdict.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    same: usize,
    refused: usize,
    denied: usize,
    silent: usize,
}

impl Count {
    fn all(self) -> usize {
        self.same + self.refused + self.denied + self.silent
    }

    fn plus(self, other: Self) -> Self {
        Self {
            same: self.same + other.same,
            refused: self.refused + other.refused,
            denied: self.denied + other.denied,
            silent: self.silent + other.silent,
        }
    }
}

/// The results of one language version.
#[derive(Debug, Default)]
pub(crate) struct Figures(BTreeMap<&'static str, Count>);

impl Figures {
    pub(crate) fn count(&mut self, family: &'static str, verdict: &Verdict) {
        let count = self.0.entry(family).or_default();
        match verdict {
            Verdict::Same => count.same += 1,
            Verdict::Refused => count.refused += 1,
            Verdict::Denied => count.denied += 1,
            Verdict::Silent => count.silent += 1,
        }
    }

    fn of(&self, families: impl Iterator<Item = &'static str>) -> Count {
        families
            .filter_map(|family| self.0.get(family))
            .fold(Count::default(), |sum, count| sum.plus(*count))
    }
}

/// Formats the table.
pub(crate) fn table(v0: &Figures, v1: &Figures) -> String {
    let mut table = "| cases | v0: same as OPA | refused at load | denied | silent | v1: same as OPA | refused at load | denied | silent |\n\
        | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    let mut row = |name: &str, families: &[&'static str], bold: bool| {
        let cell = |figures: &Figures| {
            let count = figures.of(families.iter().copied());
            let share = if bold {
                #[allow(clippy::cast_precision_loss, reason = "a few thousand")]
                let share = count.same as f64 * 100.0 / count.all() as f64;
                format!(" ({share:.1} %)")
            } else {
                String::new()
            };
            format!(
                "{}/{}{share} | {} | {} | {}",
                count.same,
                count.all(),
                count.refused,
                count.denied,
                count.silent
            )
        };
        let name = if bold {
            format!("**{name}**")
        } else {
            name.to_owned()
        };
        table.push_str(&format!("| {name} | {} | {} |\n", cell(v0), cell(v1)));
    };
    let used: Vec<&'static str> = families::used().collect();
    for family in &used {
        row(family, &[family], false);
    }
    row("what admission policies use", &used, true);
    row(families::BY_DESIGN, &[families::BY_DESIGN], false);
    row(families::NEWER_LANGUAGE, &[families::NEWER_LANGUAGE], false);
    let all: Vec<&'static str> = used
        .into_iter()
        .chain([families::BY_DESIGN, families::NEWER_LANGUAGE])
        .collect();
    row("all", &all, true);
    table
}

const BEGIN: &str = "<!-- figures: written by the conformance test -->\n";
const END: &str = "<!-- end of figures -->";

fn page() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/rego.md")
}

fn parts() -> (String, String, String) {
    let text = std::fs::read_to_string(page()).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (table, after) = rest.split_once(END).unwrap();
    (before.into(), table.into(), after.into())
}

pub(crate) fn is_written(table: &str) -> bool {
    parts().1 == table
}

pub(crate) fn write(table: &str) {
    let (before, _, after) = parts();
    std::fs::write(page(), format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
}
