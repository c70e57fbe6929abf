//! Reads manifests and Rego modules from files, directories and standard input, within limits.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rolegate_core::text::plain;
use rolegate_policy::manifest::{self, Document, MAX_BYTES};
use rolegate_rules::offline::Module;
use serde_json::Value;

use super::ignore::Ignore;
use crate::flags::invalid;

/// Maximum number of files per command.
const MAX_FILES: usize = 10_000;
/// Maximum size of all files of one command, in bytes.
const MAX_TOTAL_BYTES: usize = 256 * 1024 * 1024;
/// Maximum depth of directories.
const MAX_DEPTH: usize = 32;
/// File name extensions of manifests in directories.
const MANIFESTS: &[&str] = &["yaml", "yml", "json"];
/// The file name extension of modules.
const REGO: &str = "rego";
/// The suffix of modules that contain tests.
pub(super) const TESTS: &str = "_test.rego";
/// The path of standard input.
const STDIN: &str = "-";

/// A file and its objects.
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
    /// The files to skip.
    pub(super) ignore: Option<&'a Ignore>,
    /// The Rego modules to read.
    pub(super) modules: Modules,
    /// True if each path must contain an object, and not only lists without items.
    pub(super) requires_objects: bool,
    /// True if a path may be empty.
    pub(super) allows_empty: bool,
}

/// The Rego modules to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Modules {
    /// No modules: a Rego file is not a manifest.
    #[default]
    None,
    /// Policies; files named `*_test.rego` in directories are skipped.
    Policies,
    /// All.
    All,
}

/// The files that were read.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The manifests.
    pub(super) manifests: Vec<Manifests>,
    /// The Rego modules.
    pub(super) modules: Vec<Module>,
    /// A sentence for each skipped document.
    pub(super) skipped: Vec<String>,
}

/// Rejects invalid paths before anything is read.
///
/// # Errors
/// Returns a usage error if standard input is named twice.
pub(super) fn validate<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> anyhow::Result<()> {
    let stdin = paths
        .into_iter()
        .filter(|path| path.as_os_str() == STDIN)
        .count();
    if stdin > 1 {
        return Err(invalid("standard input (-) can only be read once"));
    }
    Ok(())
}

/// Reads everything at `paths`: files, directories with their subdirectories, `-`. Documents in a
/// directory that are not objects are skipped. A file that is named explicitly may only contain
/// objects.
///
/// # Errors
/// Returns an error for unreadable content, with file, line and advice, and for an empty path.
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

/// Returns the objects of all files.
pub(super) fn objects(manifests: Vec<Manifests>) -> Vec<Value> {
    let documents = manifests.into_iter().flat_map(|one| one.documents);
    documents.map(|document| document.value).collect()
}

/// Reads one file.
///
/// # Errors
/// Returns an error if it cannot be read.
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
    /// The number of lists without items, which are enough if no object is required.
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
                "{}: found no file that ends in .yaml, .yml{rego} or .json{taken}",
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
            if self.files > MAX_FILES {
                bail!("more than {MAX_FILES} files: check fewer at once");
            }
            self.file(&file, is_folder)?;
        }
        if self.found() == before && !self.selection.allows_empty {
            bail!(
                "{}: contains no object{}",
                named(path),
                match path.as_os_str() == STDIN {
                    true => ": the command that wrote it may have failed",
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
        let lists = match self.selection.requires_objects {
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
        if depth > MAX_DEPTH {
            bail!("{}: directories are nested too deeply", shown(folder));
        }
        for entry in std::fs::read_dir(folder).with_context(|| shown(folder))? {
            let path = entry.with_context(|| shown(folder))?.path();
            let name = path.file_name().unwrap_or_default();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // Symbolic links to files are followed, as in mounted ConfigMaps, but not links to
            // directories.
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
            if files.len() > MAX_FILES {
                bail!("{}: more than {MAX_FILES} files", shown(folder));
            }
        }
        Ok(())
    }

    /// Returns whether a file in a directory is read.
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
        if self.bytes > MAX_TOTAL_BYTES {
            let most = MAX_TOTAL_BYTES / (1024 * 1024);
            bail!("the files exceed {most} MiB in total: check fewer at once");
        }
        let text =
            std::str::from_utf8(&bytes).map_err(|_| anyhow::anyhow!("{name}: not UTF-8 text"))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let file = path.strip_prefix(".").unwrap_or(path).display().to_string();
        if is_rego(path) {
            if self.selection.modules == Modules::None {
                bail!("{name}: Rego modules are policies: use --rules");
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
                "{name}:{line} is not a Kubernetes object, since it has neither kind nor metadata: \
                 skipped"
            )
        });
        self.contents.skipped.extend(others);
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

/// Reads everything up to one byte more than the limit.
fn bounded(reader: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
