//! `extraArgs` of the old charts, as their templates rendered them.
//!
//! Both charts print `--NAME=VALUE` for a value that Go's templates regard as true, and `--NAME`
//! for any other. So `namespace-restrictions: false` rendered `--namespace-restrictions`, which
//! means true.

use serde_json::{Map, Value};

use crate::old_values::{is_true, text};

/// A flag as it was rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rendered {
    /// `--NAME=VALUE`.
    Value(String),
    /// `--NAME`, and the value that the file has for it.
    Alone(String),
    /// A list or map, which renders in Go's syntax.
    Unusable,
}

/// Returns the flags of a map of `extraArgs`, by name, as the templates order them.
pub(crate) fn rendered(arguments: Map<String, Value>) -> Vec<(String, Rendered)> {
    let mut all: Vec<_> = arguments
        .into_iter()
        .map(|(name, value)| {
            let rendered = match (is_true(&value), text(&value)) {
                (true, Some(text)) => Rendered::Value(text),
                (true, None) => Rendered::Unusable,
                (false, text) => Rendered::Alone(text.unwrap_or_default()),
            };
            (name, rendered)
        })
        .collect();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    all
}

impl Rendered {
    /// Returns the meaning of a boolean flag; `None` if the program did not accept it.
    pub(crate) fn switch(&self) -> Option<bool> {
        match self {
            Self::Alone(_) => Some(true),
            // The spellings of Go's strconv.ParseBool.
            Self::Value(text) => match text.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
                _ => None,
            },
            Self::Unusable => None,
        }
    }

    /// Returns a note about a boolean flag whose value reads as false or empty, but rendered as true.
    pub(crate) fn inversion(&self, name: &str) -> Option<String> {
        let Self::Alone(text) = self else {
            return None;
        };
        let text = if text.is_empty() { "empty" } else { text };
        Some(format!(
            "it is {text}, but the template wrote --{name} without a value, which means true; carried over as true"
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn false_and_empty_render_the_flag_alone() {
        let Value::Object(map) = json!({
            "debug": false, "insecure": "false", "node": "", "base": "x", "list": ["x"], "app-port": 0,
        }) else {
            panic!()
        };
        let all = rendered(map);
        let of = |name: &str| {
            all.iter()
                .find(|(known, _)| known == name)
                .unwrap()
                .1
                .clone()
        };
        assert_eq!(of("debug").switch(), Some(true));
        let note = of("debug").inversion("debug").unwrap();
        assert!(
            note.contains("it is false") && note.contains("means true"),
            "{note}"
        );
        assert_eq!(of("insecure").inversion("insecure"), None);
        assert_eq!(of("insecure").switch(), Some(false), "a text is not empty");
        assert_eq!(of("node"), Rendered::Alone(String::new()));
        assert_eq!(of("base"), Rendered::Value("x".into()));
        assert_eq!(of("list"), Rendered::Unusable);
        assert_eq!(of("app-port"), Rendered::Alone("0".into()));
        assert_eq!(all[0].0, "app-port", "in order of their names");
    }
}
