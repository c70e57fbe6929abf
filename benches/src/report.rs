//! The results: a table for people, JSON for programs.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use serde::Serialize;

/// A target and the measured value.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) target: &'static str,
    pub(crate) measured: String,
    pub(crate) met: bool,
    /// All measured values, with the unit in the name.
    pub(crate) values: BTreeMap<&'static str, f64>,
}

/// All rows, and the machine.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) processors: usize,
    pub(crate) threads: usize,
    pub(crate) rows: Vec<Row>,
    /// Benchmarks that failed because of a wrong response.
    pub(crate) failed: Vec<String>,
}

impl Results {
    /// Writes the table, then one line of JSON.
    pub(crate) fn write(&self, to: &mut impl Write) -> anyhow::Result<()> {
        let table: Vec<[&str; 4]> = self
            .rows
            .iter()
            .map(|row| {
                let verdict = if row.met { "ok" } else { "MISSED" };
                [row.what, row.target, row.measured.as_str(), verdict]
            })
            .collect();
        let heads = ["measurement", "target", "result", ""];
        let widths: [usize; 4] = std::array::from_fn(|column| {
            let cells = table.iter().chain([&heads]);
            let widths = cells.filter_map(|row| row.get(column).map(|cell| cell.chars().count()));
            widths.max().unwrap_or(0)
        });
        let mut line = |cells: [&str; 4]| {
            let mut text = String::from("|");
            for (cell, width) in cells.iter().zip(widths) {
                text.push_str(&format!(" {cell:<width$} |"));
            }
            writeln!(to, "{text}")
        };
        line(heads)?;
        let rules = widths.map(|width| "-".repeat(width.max(3)));
        line(rules.each_ref().map(String::as_str))?;
        for cells in table {
            line(cells)?;
        }
        for failure in &self.failed {
            writeln!(to, "WRONG: {failure}")?;
        }
        writeln!(to, "{}", serde_json::to_string(self)?)?;
        Ok(())
    }
}

/// Returns the median, or 0 without values.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
