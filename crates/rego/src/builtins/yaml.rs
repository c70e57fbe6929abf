//! `yaml.*`: documents as OPA parses them. `yes` and `on` are strings, `0123` is octal, and the
//! first of several documents applies.

use regorus::Value;
use serde_saphyr::{DuplicateKeyPolicy, Options};

use super::bounded::small;
use super::{MAX_TEXT, text};

/// Returns true if a document's first line is indented by a tab.
fn begins_with_tab(text: &str) -> bool {
    let mut at_start = true;
    text.lines().any(|line| {
        let is_first = at_start && !line.trim_end_matches('\r').is_empty();
        at_start = line.trim_end() == "---" || (at_start && !is_first);
        is_first && line.starts_with('\t')
    })
}

fn read(text: &str) -> anyhow::Result<Option<Value>> {
    anyhow::ensure!(
        text.len() <= MAX_TEXT,
        "yaml.unmarshal: more than {MAX_TEXT} bytes of text"
    );
    // OPA's parser rejects both, the parser used here accepts them.
    let version = text.strip_prefix("%YAML").map(str::trim_start);
    let other_version = version.is_some_and(|version| !version.starts_with("1.1"));
    if other_version || begins_with_tab(text) {
        return Ok(None);
    }
    let mut options = Options::default();
    options.strict_booleans = true;
    options.legacy_octal_numbers = true;
    options.duplicate_keys = DuplicateKeyPolicy::LastWins;
    let documents = serde_saphyr::from_multiple_with_options::<serde_json::Value>(text, options);
    Ok(documents.ok().map(|documents| {
        documents
            .into_iter()
            .next()
            .map_or(Value::Null, Value::from)
    }))
}

pub(super) fn unmarshal(arguments: &[Value]) -> anyhow::Result<Value> {
    let Some(text) = text(arguments, 0) else {
        return Ok(Value::Undefined);
    };
    match read(text)? {
        Some(value) => {
            small("yaml.unmarshal", std::slice::from_ref(&value))?;
            Ok(value)
        }
        None => Ok(Value::Undefined),
    }
}

pub(super) fn is_valid(arguments: &[Value]) -> anyhow::Result<Value> {
    let Some(text) = text(arguments, 0) else {
        return Ok(Value::from(false));
    };
    Ok(Value::from(read(text)?.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_text_is_read_than_may_be() {
        let of_length = |length: usize| format!("{}# ", "#".repeat(length - 2));
        assert!(read(&of_length(MAX_TEXT)).is_ok());
        assert!(read(&of_length(MAX_TEXT + 1)).is_err());
    }

    #[test]
    fn tabs_indent_no_first_line() {
        for (text, expected) in [
            ("\ta: 1", true),
            ("\n\ta: 1", true),
            ("a: 1\n---\n\tb: 2\n", true),
            ("a: 1\n---\nb: 2\n", false),
            ("a:\n  - |\n\tb\n", false),
            ("", false),
        ] {
            assert_eq!(begins_with_tab(text), expected, "{text:?}");
        }
    }
}
