//! Manifests: Kubernetes objects as written by people and tools (streams of YAML, JSON, lists, the
//! output of Helm), with the lines of their parts.
//!
//! Input is limited in size, nesting, number of nodes and expansion of aliases, since manifests in
//! a pull request are untrusted.

mod read;

use serde_json::Value;

/// Maximum size of one text, in bytes.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Maximum number of objects in one text, including those in lists.
pub const MAX_OBJECTS: usize = 20_000;
/// Maximum nesting of collections.
const MAX_DEPTH: usize = 100;
/// Maximum number of parser events: one per scalar and per start and end of a collection.
const MAX_EVENTS: usize = 4_000_000;
/// Maximum number of events that aliases may add.
const MAX_REPLAYED_EVENTS: usize = 100_000;

/// The reason why a text is not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is larger than [`MAX_BYTES`].
    #[error("it is larger than {} MiB: split it", MAX_BYTES / (1024 * 1024))]
    TooLarge,
    /// It contains more than [`MAX_OBJECTS`] objects.
    #[error("it has more than {MAX_OBJECTS} objects: split it")]
    TooMany,
    /// It is neither YAML nor JSON, or exceeds a limit.
    #[error("it is neither valid YAML nor valid JSON: {message}")]
    Syntax {
        /// The line, from 1; 0 if unknown.
        line: u64,
        /// A description of the error, in a clause.
        message: String,
    },
    /// It is an unrendered template of Helm or a similar tool.
    #[error(
        "it is an unrendered template: check the rendered output, as in helm template CHART \
         | rolegate policy check -f -"
    )]
    Template {
        /// The line, from 1; 0 if unknown.
        line: u64,
    },
    /// The `items` of a list are not a list.
    #[error("items is not a list: kubectl splits every object with items")]
    Items {
        /// The line of the object, from 1.
        line: u64,
    },
    /// A document that is not a Kubernetes object.
    #[error("the document is not a Kubernetes object, since it has no {missing}: remove or fix it")]
    NoObject {
        /// Its first line, from 1.
        line: u64,
        /// The missing field.
        missing: &'static str,
    },
}

impl ManifestError {
    /// Returns the line, from 1, if known.
    pub fn line(&self) -> Option<u64> {
        match self {
            Self::TooLarge | Self::TooMany => None,
            Self::Syntax { line, .. }
            | Self::Template { line }
            | Self::Items { line }
            | Self::NoObject { line, .. } => Some(*line).filter(|line| *line > 0),
        }
    }
}

/// One Kubernetes object of a manifest.
#[derive(Debug, Clone)]
pub struct Document {
    /// The object, a map with `apiVersion` and `kind`.
    pub value: Value,
    /// The template from which Helm rendered it, from its `# Source:` comment.
    pub source: Option<String>,
    /// True if the text is JSON with an object that has a duplicate key: the last one counts.
    pub has_duplicate_keys: bool,
    lines: Lines,
}

/// The content of a text.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    /// Its objects.
    pub documents: Vec<Document>,
    /// The lines, from 1, of documents that are not meant as objects, such as the values of a
    /// chart.
    pub others: Vec<u64>,
    /// The number of lists, with items or without.
    pub lists: usize,
}

impl Document {
    /// Returns the first line of the object, from 1.
    pub fn line(&self) -> u64 {
        self.lines.line
    }

    /// Returns the line of the part at `path`, or of its closest existing ancestor. Items of lists
    /// are numbers.
    pub fn line_of<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> u64 {
        let mut here = &self.lines;
        for step in path {
            let Some((_, next)) = here.parts.iter().find(|(name, _)| name == step) else {
                break;
            };
            here = next;
        }
        here.line
    }

    /// Reads the objects at `path` in this one, with their lines. Anything else there is an error.
    ///
    /// # Errors
    /// Returns a [`ManifestError`] if it is not an object.
    pub fn part<'a>(
        &self,
        value: Value,
        path: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Self>, ManifestError> {
        let mut lines = &self.lines;
        for step in path {
            let part = lines.parts.iter().find(|(name, _)| name == step);
            lines = part.map_or(lines, |(_, part)| part);
        }
        let origin = Origin {
            source: None,
            has_duplicate_keys: false,
        };
        let mut parsed = Parsed::default();
        take(value, lines.clone(), origin, &mut parsed)?;
        Ok(parsed.documents)
    }

    /// Returns a text field, such as `/metadata/name`.
    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.value.pointer(pointer).and_then(Value::as_str)
    }
}

/// The lines of a value and its parts. Scalars have none.
#[derive(Debug, Clone, Default)]
struct Lines {
    line: u64,
    parts: Vec<(String, Lines)>,
}

/// Reads all objects of a text, as [`read`](fn@read) does, but rejects any other content.
///
/// # Errors
/// Returns a [`ManifestError`] with the line, if known.
pub fn documents(text: &str) -> Result<Parsed, ManifestError> {
    let parsed = read(text)?;
    match parsed.others.first() {
        Some(line) => Err(ManifestError::NoObject {
            line: *line,
            missing: "apiVersion and no kind",
        }),
        None => Ok(parsed),
    }
}

/// Reads all objects of a text. As in kubectl, an object with `items` is split whatever its kind,
/// and empty documents are omitted. A document with neither `kind` nor `metadata` is not meant as
/// an object, so only its line is returned.
///
/// # Errors
/// Returns a [`ManifestError`] with the line, if known.
pub fn read(text: &str) -> Result<Parsed, ManifestError> {
    if text.len() > MAX_BYTES {
        return Err(ManifestError::TooLarge);
    }
    let (nodes, has_duplicate_keys) = read::nodes(text)?;
    let sources = sources(text);
    let mut parsed = Parsed::default();
    for (value, lines) in nodes {
        if value.is_null() {
            continue;
        }
        if value.get("kind").is_none() && value.get("metadata").is_none() {
            parsed.others.push(lines.line);
            continue;
        }
        let source = sources.iter().rev().find(|(line, _)| *line <= lines.line);
        let origin = Origin {
            source: source.and_then(|(_, source)| source.as_deref()),
            has_duplicate_keys,
        };
        take(value, lines, origin, &mut parsed)?;
    }
    Ok(parsed)
}

/// Reads a text that is one document and not necessarily an object, such as the values of a chart.
/// Returns `None` if there are several documents. Without a document the value is null.
///
/// # Errors
/// Returns a [`ManifestError`] with the line, if known.
pub fn value(text: &str) -> Result<Option<Value>, ManifestError> {
    if text.len() > MAX_BYTES {
        return Err(ManifestError::TooLarge);
    }
    let (nodes, _) = read::nodes(text)?;
    let mut values = nodes.into_iter().map(|(value, _)| value);
    let first = values.next().unwrap_or_default();
    Ok(values.next().is_none().then_some(first))
}

/// The properties of a document apart from its value.
#[derive(Clone, Copy)]
struct Origin<'a> {
    source: Option<&'a str>,
    has_duplicate_keys: bool,
}

fn take(
    value: Value,
    lines: Lines,
    origin: Origin<'_>,
    found: &mut Parsed,
) -> Result<(), ManifestError> {
    let text = |field| value.get(field).and_then(Value::as_str).unwrap_or_default();
    for missing in ["apiVersion", "kind"] {
        if text(missing).is_empty() {
            let line = lines.line;
            return Err(ManifestError::NoObject { line, missing });
        }
    }
    let (kind, version) = (text("kind").to_owned(), text("apiVersion").to_owned());
    if value.get("items").is_none() {
        if found.documents.len() >= MAX_OBJECTS {
            return Err(ManifestError::TooMany);
        }
        found.documents.push(Document {
            value,
            source: origin.source.map(str::to_owned),
            has_duplicate_keys: origin.has_duplicate_keys,
            lines,
        });
        return Ok(());
    }
    found.lists += 1;
    let item_kind = kind.strip_suffix("List").unwrap_or(&kind);
    let (items, mut item_lines) = items(value, lines)?;
    for (place, mut item) in items.into_iter().enumerate() {
        // Items of a typed list, such as PodList, may omit the kind and version.
        let named = ["kind", "apiVersion"].map(|field| item.get(field).is_some());
        if let (Value::Object(fields), [false, false]) = (&mut item, named) {
            fields.insert("kind".into(), item_kind.into());
            fields.insert("apiVersion".into(), version.as_str().into());
        }
        let lines = item_lines
            .get_mut(place)
            .map(std::mem::take)
            .unwrap_or_default();
        take(item, lines, origin, found)?;
    }
    Ok(())
}

fn items(value: Value, lines: Lines) -> Result<(Vec<Value>, Vec<Lines>), ManifestError> {
    let items = match value {
        Value::Object(mut fields) => fields.remove("items"),
        _ => None,
    };
    let values = match items {
        Some(Value::Array(items)) => items,
        Some(Value::Null) | None => Vec::new(),
        Some(_) => return Err(ManifestError::Items { line: lines.line }),
    };
    let mut parts = lines.parts.into_iter();
    let lines = parts.find(|(name, _)| name == "items");
    let lines = lines.map(|(_, lines)| lines.parts).unwrap_or_default();
    Ok((values, lines.into_iter().map(|(_, lines)| lines).collect()))
}

/// Returns the first lines of documents and of Helm's comments, with the template or `None`.
fn sources(text: &str) -> Vec<(u64, Option<String>)> {
    let mut found = Vec::new();
    for (number, line) in (1_u64..).zip(text.lines()) {
        if let Some(source) = line.strip_prefix("# Source: ") {
            found.push((number, Some(rolegate_core::text::plain(source.trim()))));
        } else if line.starts_with("---") {
            found.push((number, None));
        }
    }
    found
}

#[cfg(test)]
mod tests;
