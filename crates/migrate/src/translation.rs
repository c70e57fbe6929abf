//! The translation of values, and its forms for people and programs.

use serde_json::{Value, json};

use crate::note::{Note, NoteKind};
use crate::old_values::OldValues;
use crate::output::Output;
use crate::read::{Chart, MigrateError, ValuesFile, merged, of_subchart, recognise};
use crate::{kiam, kube2iam};
use rolegate_core::text::plain;

/// Maximum width of a comment, in characters.
const COMMENT_WIDTH: usize = 110;
/// Maximum number of pods in a comment. The JSON form has all.
const MAX_COMMENTED_PODS: usize = 50;

/// The values of rolegate's chart, with a note for each old value that is not carried over as it
/// is.
#[derive(Debug, Clone)]
pub struct Translation {
    /// The old chart.
    pub chart: Chart,
    /// The values of rolegate's chart.
    pub values: Value,
    /// The notes, by kind and then by the old chart's order.
    pub notes: Vec<Note>,
    /// True if the translation named the pods of the default role, or would with a list of pods.
    pub uses_pods: bool,
}

/// Translates values files, which are merged as Helm merges them. `chart` is recognised by the keys
/// unless given. `pods` are the objects among which those that relied on the default role are
/// found.
///
/// # Errors
/// Returns a [`MigrateError`] for files that are not values, or if the chart is unknown.
pub fn translate(
    files: &[ValuesFile<'_>],
    chart: Option<Chart>,
    pods: Option<&[Value]>,
) -> Result<Translation, MigrateError> {
    let mut values = merged(files)?;
    let mut out = Output::default();
    let chart = match (chart, of_subchart(&mut values)) {
        (wanted, Some((found, part))) if wanted.is_none_or(|wanted| wanted == found) => {
            for (key, _) in std::mem::replace(&mut values, part) {
                out.dropped(
                    &key,
                    format!("not among the values of {found} as a subchart"),
                );
            }
            found
        }
        (Some(chart), None) => chart,
        (Some(chart), Some((found, part))) => {
            values.insert(found.to_string(), Value::Object(part));
            chart
        }
        (None, _) => recognise(&values)?,
    };
    let mut old = OldValues::new(values);
    if old.take("global").is_some() {
        out.dropped("global", "no chart of rolegate or its peers reads it");
    }
    let uses_pods = match chart {
        Chart::Kube2iam => kube2iam::translate(&mut old, &mut out, pods),
        Chart::Kiam => {
            kiam::translate(&mut old, &mut out);
            false
        }
    };
    crate::common::report_unread(&old, &mut out, &chart.to_string());
    let mut notes = out.notes;
    notes.sort_by_key(|note| note.kind);
    Ok(Translation {
        chart,
        values: Value::Object(out.values),
        notes,
        uses_pods,
    })
}

impl Translation {
    /// Returns whether every value was carried over or is not needed.
    pub fn is_complete(&self) -> bool {
        self.notes.iter().all(|note| note.kind != NoteKind::Action)
    }

    /// Returns the JSON form.
    pub fn json(&self) -> Value {
        json!({"chart": self.chart, "values": self.values, "notes": self.notes})
    }

    /// Returns the notes as YAML comments, for the top of the values.
    pub fn comments(&self) -> String {
        let mut text = comment(
            "",
            &format!(
                "Values of rolegate's chart, translated from those of {}'s chart by `rolegate migrate values`. Set \
                 image.repository before you install, and read the deviations in docs/from-{}.md.",
                self.chart, self.chart
            ),
        );
        for kind in NoteKind::ALL {
            let mut notes = self
                .notes
                .iter()
                .filter(|note| note.kind == kind)
                .peekable();
            if notes.peek().is_none() {
                continue;
            }
            text.push_str("#\n");
            text.push_str(&comment("", kind.heading()));
            for note in notes {
                text.push_str(&comment("- ", &note.line()));
                for pod in note.pods.iter().take(MAX_COMMENTED_PODS) {
                    text.push_str(&comment("  - ", pod));
                }
                if let Some(more) = note.pods.len().checked_sub(MAX_COMMENTED_PODS)
                    && more > 0
                {
                    text.push_str(&comment("  - ", &format!("{more} more: -o json lists all")));
                }
            }
        }
        text
    }
}

/// Formats a text as comment lines of limited width. The first line begins with `bullet`, and the
/// others are indented as much.
fn comment(bullet: &str, text: &str) -> String {
    let text = plain(text);
    let indent = " ".repeat(bullet.len());
    let mut lines = String::new();
    let mut line = format!("# {bullet}");
    let mut is_empty = true;
    for word in text.split(' ') {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > COMMENT_WIDTH {
            lines.push_str(&line);
            lines.push('\n');
            line = format!("# {indent}");
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push_str(&line);
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_stay_comments_at_any_width() {
        let text = comment(
            "- ",
            &format!("a\n{} {}", "b".repeat(150), "c ".repeat(100)),
        );
        assert!(text.lines().count() > 2, "{text}");
        for line in text.lines() {
            assert!(line.starts_with("# "), "{line}");
        }
    }

    #[test]
    fn values_of_a_subchart_are_found() {
        let file = ValuesFile {
            name: "values.yaml",
            content: b"kube2iam: {host: {iptables: true, interface: eni+}}\nother: {a: 1}\n",
        };
        let found = translate(&[file], None, None).unwrap();
        assert_eq!(found.chart, Chart::Kube2iam);
        assert_eq!(found.values["agent"]["hostInterface"], "eni+");
        assert!(found.notes.iter().any(|note| note.from == "other"));
        let other = translate(&[file], Some(Chart::Kiam), None).unwrap();
        assert!(
            other
                .notes
                .iter()
                .any(|note| note.from.starts_with("kube2iam."))
        );
    }
}
