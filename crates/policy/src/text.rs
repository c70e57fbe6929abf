//! Text for terminals. Untrusted text is escaped before it is printed.

use anstyle::{AnsiColor, Style};

pub use rolegate_core::text::plain;

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
    fn threat_25_a_terminal_is_not_moved() {
        assert_eq!(plain("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\u{a}c");
        assert_eq!(plain("payments-é"), "payments-é");
        for c in UNSAFE_EXAMPLES {
            let hostile = format!("a{c}b");
            let table = table(&["NAME"], [vec![hostile.clone()]]);
            for text in [plain(&hostile), table.replace('\n', "")] {
                assert!(!text.contains(is_unsafe), "{c:?}: {text:?}");
            }
        }
    }
}
