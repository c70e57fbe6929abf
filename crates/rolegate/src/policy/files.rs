//! Manifests and modules of Rego from files, folders and standard input, bounded.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rolegate_policy::manifest::{self, Document, MOST_BYTES};
use rolegate_policy::text::plain;
use rolegate_rules::offline::Module;
use serde_json::Value;

use super::ignore::Ignore;
use crate::flags::invalid;

/// Most files of one command.
const MOST_FILES: usize = 10_000;
/// Most bytes of all files of one command.
const MOST_IN_ALL: usize = 256 * 1024 * 1024;
/// Deepest folders.
const MOST_DEPTH: usize = 32;
/// Endings of manifests in folders.
const MANIFESTS: &[&str] = &["yaml", "yml", "json"];
/// The ending of modules.
const REGO: &str = "rego";
/// The ending of names of modules that hold tests.
pub(super) const TESTS: &str = "_test.rego";
/// The path that means standard input.
const STDIN: &str = "-";

/// A file with its objects.
#[derive(Debug)]
pub(super) struct Manifests {
    /// The path as given, or `-`.
    pub(super) file: String,
    /// Its objects.
    pub(super) documents: Vec<Document>,
}

/// The files to read, and how to read them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Selection<'a> {
    /// Files that are passed over.
    pub(super) ignore: Option<&'a Ignore>,
    /// The Rego modules to read.
    pub(super) modules: Modules,
    /// True if each path must hold an object, and not only lists without items.
    pub(super) demands_objects: bool,
    /// True if a path need not hold anything.
    pub(super) allows_empty: bool,
}

/// The Rego modules to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Modules {
    /// No modules: a file of Rego is not a manifest.
    #[default]
    None,
    /// Policies; files named `*_test.rego` in folders are passed over.
    Policies,
    /// All.
    All,
}

/// The content that was read.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Files of manifests.
    pub(super) manifests: Vec<Manifests>,
    /// Modules of Rego.
    pub(super) modules: Vec<Module>,
    /// Notes about skipped documents, a sentence each.
    pub(super) passed_over: Vec<String>,
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

/// Reads everything at `paths`: files, folders with their subfolders, `-`. Documents in a folder
/// that are not objects are skipped; a file that is named explicitly may only hold objects.
///
/// # Errors
/// Returns an error for unreadable content, with file, line and advice, and for a path without
/// content.
pub(super) fn read(paths: &[PathBuf], selection: Selection<'_>) -> anyhow::Result<Contents> {
    let mut reader = Reader {
        selection,
        contents: Contents::default(),
        files: 0,
        bytes: 0,
        lists: 0,
    };
    for path in paths {
        reader.path(path)?;
    }
    Ok(reader.contents)
}

/// The objects of all files.
pub(super) fn objects(manifests: Vec<Manifests>) -> Vec<Value> {
    let documents = manifests.into_iter().flat_map(|one| one.documents);
    documents.map(|document| document.value).collect()
}

/// The bytes of one file.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    File::open(path)
        .and_then(bounded)
        .with_context(|| shown(path))
}

struct Reader<'a> {
    selection: Selection<'a>,
    contents: Contents,
    files: usize,
    bytes: usize,
    /// Lists without items, which are something where no object has to be there.
    lists: usize,
}

impl Reader<'_> {
    fn path(&mut self, path: &Path) -> anyhow::Result<()> {
        let is_folder = path.as_os_str() != STDIN && path.is_dir();
        let files = if is_folder {
            let mut files = BTreeSet::new();
            self.collect(path, path, 0, &mut files)?;
            files.into_iter().collect()
        } else {
            vec![path.to_owned()]
        };
        if files.is_empty() && !self.selection.allows_empty {
            let rego = match self.selection.modules {
                Modules::None => "",
                Modules::Policies | Modules::All => ", .rego",
            };
            let taken = match self.selection.ignore {
                Some(_) => " and is not ignored",
                None => "",
            };
            bail!(
                "{}: there is no file that ends in .yaml, .yml{rego} or .json{taken}",
                shown(path)
            );
        }
        let before = self.found();
        for file in files {
            let is_ignored = |ignore: &Ignore| ignore.matches(path, &file);
            if self.selection.ignore.is_some_and(is_ignored) {
                continue;
            }
            self.files += 1;
            if self.files > MOST_FILES {
                bail!("there are more than {MOST_FILES} files: check fewer at once");
            }
            self.file(&file, is_folder)?;
        }
        if self.found() == before && !self.selection.allows_empty {
            bail!(
                "{}: there is no object in it{}",
                named(path),
                match path.as_os_str() == STDIN {
                    true => ": the command that writes it may have failed",
                    false => "",
                }
            );
        }
        Ok(())
    }

    /// Returns how many of the required items were found.
    fn found(&self) -> usize {
        let manifests = self.contents.manifests.iter();
        let objects: usize = manifests.map(|one| one.documents.len()).sum();
        let lists = match self.selection.demands_objects {
            true => 0,
            false => self.lists,
        };
        objects + self.contents.modules.len() + lists
    }

    fn collect(
        &self,
        root: &Path,
        folder: &Path,
        depth: usize,
        files: &mut BTreeSet<PathBuf>,
    ) -> anyhow::Result<()> {
        if depth > MOST_DEPTH {
            bail!("{}: the folders are nested too deep", shown(folder));
        }
        for entry in std::fs::read_dir(folder).with_context(|| shown(folder))? {
            let path = entry.with_context(|| shown(folder))?.path();
            let name = path.file_name().unwrap_or_default();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // Links are followed to files, as in mounted ConfigMaps, and not to folders.
            if path.is_dir() {
                if !path.is_symlink() {
                    self.collect(root, &path, depth + 1, files)?;
                }
            } else if self.is_wanted(&path)
                && !self
                    .selection
                    .ignore
                    .is_some_and(|ignore| ignore.matches(root, &path))
            {
                files.insert(path);
            }
            if files.len() > MOST_FILES {
                bail!("{}: there are more than {MOST_FILES} files", shown(folder));
            }
        }
        Ok(())
    }

    /// Returns whether a file in a folder is read.
    fn is_wanted(&self, path: &Path) -> bool {
        if is_rego(path) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            return match self.selection.modules {
                Modules::None => false,
                Modules::Policies => !name.ends_with(TESTS),
                Modules::All => true,
            };
        }
        let ending = path.extension().and_then(|ending| ending.to_str());
        ending.is_some_and(|ending| MANIFESTS.contains(&ending))
    }

    fn file(&mut self, path: &Path, in_folder: bool) -> anyhow::Result<()> {
        let is_stdin = path.as_os_str() == STDIN;
        let name = named(path);
        let bytes = if is_stdin {
            bounded(std::io::stdin().lock())
        } else {
            File::open(path).and_then(bounded)
        };
        let bytes = bytes.with_context(|| name.clone())?;
        self.bytes += bytes.len();
        if self.bytes > MOST_IN_ALL {
            let most = MOST_IN_ALL / (1024 * 1024);
            bail!("the files have more than {most} MiB together: check fewer at once");
        }
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| anyhow::anyhow!("{name}: it is not text (UTF-8)"))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let file = path.strip_prefix(".").unwrap_or(path).display().to_string();
        if is_rego(path) {
            if self.selection.modules == Modules::None {
                bail!("{name}: modules of Rego are policies: give them by --rules");
            }
            let text = text.to_owned();
            self.contents.modules.push(Module { file, text });
            return Ok(());
        }
        let parsed = match in_folder {
            true => manifest::read(text),
            false => manifest::documents(text),
        };
        let parsed = parsed.map_err(|error| match error.line() {
            Some(line) => anyhow::anyhow!("{name}:{line}: {error}"),
            None => anyhow::anyhow!("{name}: {error}"),
        })?;
        let others = parsed.others.iter().map(|line| {
            format!(
                "{name}:{line} is no Kubernetes object, for it has neither kind nor metadata: it is \
                 passed over"
            )
        });
        self.contents.passed_over.extend(others);
        self.lists += parsed.lists;
        self.contents.manifests.push(Manifests {
            file,
            documents: parsed.documents,
        });
        Ok(())
    }
}

fn is_rego(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == REGO)
}

fn shown(path: &Path) -> String {
    plain(&path.display().to_string())
}

fn named(path: &Path) -> String {
    match path.as_os_str() == STDIN {
        true => "standard input".to_owned(),
        false => shown(path.strip_prefix("./").unwrap_or(path)),
    }
}

/// All bytes, and one more than is taken of what is too large.
fn bounded(reader: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
