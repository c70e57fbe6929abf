//! Manifests: Kubernetes objects as people and tools write them (streams of YAML, JSON, lists, the
//! output of Helm), with the lines that their parts stand on.
//!
//! What is read is bounded in bytes, nesting, nodes and in what aliases expand to, since manifests
//! of a pull request are anybody's.

mod read;

use serde_json::Value;

/// Most bytes of one text.
pub const MOST_BYTES: usize = 16 * 1024 * 1024;
/// Most objects of one text, those in lists included.
pub const MOST_OBJECTS: usize = 20_000;
/// Deepest nesting of collections.
const MOST_DEPTH: usize = 100;
/// Most events of the parser, one for each scalar and each begin and end of a collection.
const MOST_EVENTS: usize = 4_000_000;
/// Most events that aliases may add.
const MOST_REPLAYED: usize = 100_000;

/// Why a text is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is larger than [`MOST_BYTES`].
    #[error("it is larger than {} MiB: split it", MOST_BYTES / (1024 * 1024))]
    TooLarge,
    /// There are more objects than [`MOST_OBJECTS`].
    #[error("it has more than {MOST_OBJECTS} objects: split it")]
    TooMany,
    /// It is not YAML and not JSON, or goes over a limit.
    #[error("it is neither YAML nor JSON that can be read: {message}")]
    Syntax {
        /// The line, from 1; 0 where that is not known.
        line: u64,
        /// The fault, in a clause.
        message: String,
    },
    /// It is a template of Helm or its like, and not what comes of it.
    #[error(
        "it is a template that was not rendered: check what comes of it, as in helm template CHART \
         | rolegate policy check -f -"
    )]
    Template {
        /// The line, from 1; 0 where that is not known.
        line: u64,
    },
    /// The `items` of a list are no list.
    #[error("items is no list: kubectl takes every object with items apart")]
    Items {
        /// The line of the object, from 1.
        line: u64,
    },
    /// A document that is no Kubernetes object.
    #[error(
        "the document is no Kubernetes object, for it has no {missing}: leave it out, or mend it"
    )]
    NoObject {
        /// Where it starts, from 1.
        line: u64,
        /// Which field.
        missing: &'static str,
    },
}

impl ManifestError {
    /// The line, from 1, where it is known.
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
    /// The template that Helm made it from, of its `# Source:` comment.
    pub source: Option<String>,
    /// True if the text is JSON with an object that has a duplicate key: the last one counts.
    pub repeats_key: bool,
    lines: Lines,
}

/// The content of a text.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    /// Its objects.
    pub documents: Vec<Document>,
    /// The lines, from 1, of documents that are no objects and are not meant as ones, such as
    /// the values of a chart.
    pub others: Vec<u64>,
    /// The number of lists, with items or without.
    pub lists: usize,
}

impl Document {
    /// The line that the object starts on, from 1.
    pub fn line(&self) -> u64 {
        self.lines.line
    }

    /// The line of the part at `path`, or of the closest part around it that is there. Places in
    /// lists are numbers.
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

    /// Reads the objects in this one at `path`, with their lines; anything else there is an error.
    ///
    /// # Errors
    /// [`ManifestError`] if it is not an object.
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
            repeats_key: false,
        };
        let mut parsed = Parsed::default();
        take(value, lines.clone(), origin, &mut parsed)?;
        Ok(parsed.documents)
    }

    /// A text field, such as `/metadata/name`.
    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.value.pointer(pointer).and_then(Value::as_str)
    }
}

/// The lines of a value and its parts; scalars have none.
#[derive(Debug, Clone, Default)]
struct Lines {
    line: u64,
    parts: Vec<(String, Lines)>,
}

/// Reads all objects of a text, as [`read`] does, but refuses any other content.
///
/// # Errors
/// [`ManifestError`], with the line where there is one.
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

/// Reads all objects of a text. An object with `items` is taken apart whatever its kind is, as kubectl
/// does; empty documents are left out. A document with neither `kind` nor `metadata` is
/// not meant as an object: its line is told.
///
/// # Errors
/// [`ManifestError`], with the line where there is one.
pub fn read(text: &str) -> Result<Parsed, ManifestError> {
    if text.len() > MOST_BYTES {
        return Err(ManifestError::TooLarge);
    }
    let (nodes, repeats_key) = read::nodes(text)?;
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
            repeats_key,
        };
        take(value, lines, origin, &mut parsed)?;
    }
    Ok(parsed)
}

/// Facts about a document apart from its value.
#[derive(Clone, Copy)]
struct Origin<'a> {
    source: Option<&'a str>,
    repeats_key: bool,
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
        if found.documents.len() >= MOST_OBJECTS {
            return Err(ManifestError::TooMany);
        }
        found.documents.push(Document {
            value,
            source: origin.source.map(str::to_owned),
            repeats_key: origin.repeats_key,
            lines,
        });
        return Ok(());
    }
    found.lists += 1;
    let item_kind = kind.strip_suffix("List").unwrap_or(&kind);
    let (items, mut item_lines) = items(value, lines)?;
    for (place, mut item) in items.into_iter().enumerate() {
        // Items of a typed list, such as PodList, may leave out what the list says.
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

/// Where documents and Helm's comments start: the line, and the template or nothing.
fn sources(text: &str) -> Vec<(u64, Option<String>)> {
    let mut found = Vec::new();
    for (number, line) in (1_u64..).zip(text.lines()) {
        if let Some(source) = line.strip_prefix("# Source: ") {
            found.push((number, Some(crate::text::plain(source.trim()))));
        } else if line.starts_with("---") {
            found.push((number, None));
        }
    }
    found
}

#[cfg(test)]
mod tests;
