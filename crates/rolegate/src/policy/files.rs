//! Manifests from files, folders and standard input, bounded.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rolegate_policy::manifest::{Document, MOST_BYTES, documents};
use rolegate_policy::text::plain;
use serde_json::Value;

use crate::flags::invalid;

/// Most files of one command.
const MOST_FILES: usize = 10_000;
/// Most bytes of all files of one command.
const MOST_IN_ALL: usize = 256 * 1024 * 1024;
/// Deepest folders.
const MOST_DEPTH: usize = 32;
/// What manifests in folders are called.
const ENDINGS: &[&str] = &["yaml", "yml", "json"];
/// What names standard input.
const STDIN: &str = "-";

/// A file with its objects.
#[derive(Debug)]
pub(super) struct Manifests {
    /// The path as given, or `-`.
    pub(super) file: String,
    /// Its objects.
    pub(super) documents: Vec<Document>,
}

/// Refuses paths that make no sense, before anything is read.
///
/// # Errors
/// Standard input named twice, as wrong usage.
pub(super) fn validate<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> anyhow::Result<()> {
    let stdin = paths
        .into_iter()
        .filter(|path| path.as_os_str() == STDIN)
        .count();
    if stdin > 1 {
        return Err(invalid("standard input (-) can be read once only"));
    }
    Ok(())
}

/// Reads everything at `paths`: files, folders with all that is below them, `-`.
///
/// # Errors
/// What cannot be read, with file, line and what to do.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Manifests>> {
    let mut found = Vec::new();
    let mut bytes = 0;
    for path in paths {
        let files = if path.as_os_str() != STDIN && path.is_dir() {
            let mut files = BTreeSet::new();
            collect(path, 0, &mut files)?;
            if files.is_empty() {
                let path = path.display();
                bail!("{path}: there is no file that ends in .yaml, .yml or .json");
            }
            files.into_iter().collect()
        } else {
            vec![path.clone()]
        };
        for path in files {
            if found.len() >= MOST_FILES {
                bail!("there are more than {MOST_FILES} files: check fewer at once");
            }
            let (manifests, size) = one(&path)?;
            bytes += size;
            if bytes > MOST_IN_ALL {
                let most = MOST_IN_ALL / (1024 * 1024);
                bail!("the files have more than {most} MiB together: check fewer at once");
            }
            found.push(manifests);
        }
    }
    Ok(found)
}

/// The objects of all files.
pub(super) fn objects(manifests: Vec<Manifests>) -> Vec<Value> {
    let documents = manifests.into_iter().flat_map(|one| one.documents);
    documents.map(|document| document.value).collect()
}

fn collect(folder: &Path, depth: usize, files: &mut BTreeSet<PathBuf>) -> anyhow::Result<()> {
    let shown = || plain(&folder.display().to_string());
    if depth > MOST_DEPTH {
        bail!("{}: the folders are nested too deep", shown());
    }
    for entry in std::fs::read_dir(folder).with_context(shown)? {
        let path = entry.with_context(shown)?.path();
        let name = path.file_name().unwrap_or_default();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // Links are followed to files, as in mounted ConfigMaps, and not to folders.
        if path.is_dir() {
            if !path.is_symlink() {
                collect(&path, depth + 1, files)?;
            }
        } else if path
            .extension()
            .and_then(|ending| ending.to_str())
            .is_some_and(|ending| ENDINGS.contains(&ending))
        {
            files.insert(path);
        }
        if files.len() > MOST_FILES {
            bail!("{}: there are more than {MOST_FILES} files", shown());
        }
    }
    Ok(())
}

fn one(path: &Path) -> anyhow::Result<(Manifests, usize)> {
    let is_stdin = path.as_os_str() == STDIN;
    let file = if is_stdin {
        STDIN.to_owned()
    } else {
        path.display().to_string()
    };
    let name = if is_stdin {
        "standard input".to_owned()
    } else {
        plain(&file)
    };
    let bytes = if is_stdin {
        bounded(std::io::stdin().lock())
    } else {
        File::open(path).and_then(bounded)
    };
    let bytes = bytes.with_context(|| name.clone())?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| anyhow::anyhow!("{name}: it is not text (UTF-8)"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let documents = documents(text).map_err(|error| match error.line() {
        Some(line) => anyhow::anyhow!("{name}:{line}: {error}"),
        None => anyhow::anyhow!("{name}: {error}"),
    })?;
    Ok((Manifests { file, documents }, bytes.len()))
}

/// The bytes of one file.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    let name = || plain(&path.display().to_string());
    File::open(path).and_then(bounded).with_context(name)
}

/// All bytes, and one more than is taken of what is too large.
fn bounded(reader: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
