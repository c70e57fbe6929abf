//! Text for terminals: styles, tables and numbers.

use anstyle::{AnsiColor, Style};
use rolegate_core::text::plain;

/// Titles.
pub const TITLE: Style = Style::new().bold();
/// Secondary text.
pub const FAINT: Style = Style::new().dimmed();
/// Allowed.
pub const GOOD: Style = AnsiColor::Green.on_default().bold();
/// Denied.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// Warnings.
pub const WARN: Style = AnsiColor::Yellow.on_default().bold();

/// Formats a number of things: `1 pod`, `2 pods`.
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Formats a table with a title above each column. Cells are escaped.
pub fn table(titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let titles = titles.iter().map(|title| (*title).to_owned()).collect();
    let mut all = vec![titles];
    all.extend(rows.into_iter().map(|row: Vec<String>| {
        let cells = row.iter();
        cells.map(|cell| plain(cell)).collect::<Vec<_>>()
    }));
    let columns = all.iter().map(Vec::len).max().unwrap_or_default();
    let mut widths = vec![0; columns];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &Vec<String>| {
        let cells = widths.iter().zip(row);
        let line: String = cells
            .map(|(width, cell)| format!("{cell:<width$}   "))
            .collect();
        format!("{}\n", line.trim_end())
    };
    all.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use rolegate_core::text::{UNSAFE_EXAMPLES, is_unsafe};

    use super::*;

    #[test]
    fn a_table_is_aligned_and_harmless() {
        let rows = [vec!["a\nb".into(), "x".into()], vec!["c".into(), "".into()]];
        assert_eq!(
            table(&["NAME", "ROLE"], rows),
            "NAME      ROLE\na\\u{a}b   x\nc\n"
        );
    }

    #[test]
    fn threat_25_a_table_does_not_move_a_terminal() {
        for c in UNSAFE_EXAMPLES {
            let table = table(&["NAME"], [vec![format!("a{c}b")]]).replace('\n', "");
            assert!(!table.contains(is_unsafe), "{c:?}: {table:?}");
        }
    }
}
