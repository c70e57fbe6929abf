//! Reads manifests and Rego modules from files, directories and standard input, within limits.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rolegate_api::manifest::{self, Document, MAX_BYTES, ManifestError};
use rolegate_core::text::plain;
use serde_json::Value;

use crate::ignore::Ignore;
use crate::offline::Module;

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
const TESTS: &str = "_test.rego";
/// The path of standard input.
const STDIN: &str = "-";

/// A file and its objects.
#[derive(Debug)]
pub struct Manifests {
    /// The path as given, or `-`.
    pub file: String,
    /// Its objects.
    pub documents: Vec<Document>,
}

/// The files to read, and how to read them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection<'a> {
    /// The files to skip.
    pub ignore: Option<&'a Ignore>,
    /// The Rego modules to read.
    pub modules: Modules,
    /// True if each path must contain an object, and not only lists without items.
    pub requires_objects: bool,
    /// True if a path may be empty.
    pub allows_empty: bool,
}

/// The Rego modules to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Modules {
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
pub struct Contents {
    /// The manifests.
    pub manifests: Vec<Manifests>,
    /// The Rego modules.
    pub modules: Vec<Module>,
    /// A sentence for each skipped document.
    pub skipped: Vec<String>,
}

/// The reason why files cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Standard input is named twice.
    #[error("standard input (-) can only be read once")]
    StdinTwice,
    /// The operating system refuses the file or directory of this name.
    #[error("{0}")]
    Io(String, #[source] std::io::Error),
    /// A directory has no file to read.
    #[error(
        "{folder}: found no file that ends in .yaml, .yml{} or .json{}",
        phrase(.with_modules, ", .rego"),
        phrase(.with_ignore, " and is not ignored")
    )]
    NoFile {
        /// The directory.
        folder: String,
        /// True if Rego modules are read.
        with_modules: bool,
        /// True if files may be ignored.
        with_ignore: bool,
    },
    /// A path contains no object.
    #[error(
        "{name}: contains no object{}",
        phrase(.is_stdin, ": the command that wrote it may have failed")
    )]
    NoObject {
        /// The path.
        name: String,
        /// True if it is standard input.
        is_stdin: bool,
    },
    /// There are more than `MAX_FILES` files.
    #[error("more than {MAX_FILES} files: check fewer at once")]
    TooMany,
    /// A directory has more than `MAX_FILES` files.
    #[error("{0}: more than {MAX_FILES} files")]
    TooManyIn(String),
    /// Directories are nested deeper than `MAX_DEPTH`.
    #[error("{0}: directories are nested too deeply")]
    TooDeep(String),
    /// The files are larger than `MAX_TOTAL_BYTES`.
    #[error("the files exceed {} MiB in total: check fewer at once", MAX_TOTAL_BYTES / (1024 * 1024))]
    TooLarge,
    /// The file is not text.
    #[error("{0}: not UTF-8 text")]
    NotText(String),
    /// The file is a Rego module, and modules are not read.
    #[error("{0}: Rego modules are policies")]
    Module(String),
    /// The file is not a manifest.
    #[error("{name}{}: {error}", line(.error))]
    Manifest {
        /// The file.
        name: String,
        /// The fault and its line.
        error: ManifestError,
    },
}

/// Returns a phrase if it applies.
fn phrase(applies: &bool, phrase: &'static str) -> &'static str {
    if *applies { phrase } else { "" }
}

/// Formats the line of an error.
fn line(error: &ManifestError) -> String {
    error
        .line()
        .map_or(String::new(), |line| format!(":{line}"))
}

/// Adds the name of a file to an error.
fn io(path: &Path) -> impl FnOnce(std::io::Error) -> FileError {
    move |error| FileError::Io(shown(path), error)
}

/// Rejects invalid paths before anything is read.
///
/// # Errors
/// Returns [`FileError::StdinTwice`] if standard input is named twice.
pub fn validate<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), FileError> {
    let paths = paths.into_iter();
    match paths.filter(|path| path.as_os_str() == STDIN).count() {
        0 | 1 => Ok(()),
        _ => Err(FileError::StdinTwice),
    }
}

/// Reads everything at `paths`: files, directories with their subdirectories, `-`. Documents in a
/// directory that are not objects are skipped. A file that is named explicitly may only contain
/// objects.
///
/// # Errors
/// Returns an error for unreadable content, with file, line and advice, and for an empty path.
pub fn read(paths: &[PathBuf], selection: Selection<'_>) -> Result<Contents, FileError> {
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
pub fn objects(manifests: Vec<Manifests>) -> Vec<Value> {
    let documents = manifests.into_iter().flat_map(|one| one.documents);
    documents.map(|document| document.value).collect()
}

/// Reads one file, or standard input for `-`.
///
/// # Errors
/// Returns an error if it cannot be read.
pub fn bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    if path.as_os_str() == STDIN {
        return bounded(std::io::stdin().lock()).map_err(io(path));
    }
    File::open(path).and_then(bounded).map_err(io(path))
}

impl Contents {
    /// Returns a copy of everything.
    pub fn all(&self) -> Self {
        let manifests = self.manifests.iter().map(|one| Manifests {
            file: one.file.clone(),
            documents: one.documents.clone(),
        });
        Self {
            manifests: manifests.collect(),
            modules: self.modules.clone(),
            skipped: Vec::new(),
        }
    }

    /// Returns a copy of everything except test modules.
    pub fn policies(&self) -> Self {
        let mut policies = self.all();
        let is_test = |file: &str| file.ends_with(TESTS);
        policies.modules.retain(|module| !is_test(&module.file));
        policies
    }

    /// Adds the contents of other files.
    pub fn add(&mut self, more: Self) {
        let path = |file: &str| Path::new(file).canonicalize().unwrap_or(file.into());
        let manifests = self.manifests.iter().map(|one| path(&one.file));
        let modules = self.modules.iter().map(|one| path(&one.file));
        let known: BTreeSet<_> = manifests.chain(modules).collect();
        let is_new = |file: &str| !known.contains(&path(file));
        let manifests = more.manifests.into_iter();
        self.manifests
            .extend(manifests.filter(|one| is_new(&one.file)));
        let modules = more.modules.into_iter();
        self.modules.extend(modules.filter(|one| is_new(&one.file)));
    }
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
    fn path(&mut self, path: &Path) -> Result<(), FileError> {
        let is_folder = path.as_os_str() != STDIN && path.is_dir();
        let files = if is_folder {
            let mut files = BTreeSet::new();
            self.collect(path, path, 0, &mut files)?;
            files.into_iter().collect()
        } else {
            vec![path.to_owned()]
        };
        if files.is_empty() && !self.selection.allows_empty {
            return Err(FileError::NoFile {
                folder: shown(path),
                with_modules: self.selection.modules != Modules::None,
                with_ignore: self.selection.ignore.is_some(),
            });
        }
        let before = self.found();
        for file in files {
            let is_ignored = |ignore: &Ignore| ignore.matches(path, &file);
            if self.selection.ignore.is_some_and(is_ignored) {
                continue;
            }
            self.files += 1;
            if self.files > MAX_FILES {
                return Err(FileError::TooMany);
            }
            self.file(&file, is_folder)?;
        }
        if self.found() == before && !self.selection.allows_empty {
            return Err(FileError::NoObject {
                name: named(path),
                is_stdin: path.as_os_str() == STDIN,
            });
        }
        Ok(())
    }

    /// Returns how many of the required items were found.
    fn found(&self) -> usize {
        let manifests = self.contents.manifests.iter();
        let objects: usize = manifests.map(|one| one.documents.len()).sum();
        let lists = if self.selection.requires_objects {
            0
        } else {
            self.lists
        };
        objects + self.contents.modules.len() + lists
    }

    fn collect(
        &self,
        root: &Path,
        folder: &Path,
        depth: usize,
        files: &mut BTreeSet<PathBuf>,
    ) -> Result<(), FileError> {
        if depth > MAX_DEPTH {
            return Err(FileError::TooDeep(shown(folder)));
        }
        for entry in std::fs::read_dir(folder).map_err(io(folder))? {
            let path = entry.map_err(io(folder))?.path();
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
                return Err(FileError::TooManyIn(shown(folder)));
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

    fn file(&mut self, path: &Path, in_folder: bool) -> Result<(), FileError> {
        let is_stdin = path.as_os_str() == STDIN;
        let name = named(path);
        let bytes = if is_stdin {
            bounded(std::io::stdin().lock())
        } else {
            File::open(path).and_then(bounded)
        };
        let bytes = bytes.map_err(|error| FileError::Io(name.clone(), error))?;
        self.bytes += bytes.len();
        if self.bytes > MAX_TOTAL_BYTES {
            return Err(FileError::TooLarge);
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| FileError::NotText(name.clone()))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let file = path.strip_prefix(".").unwrap_or(path).display().to_string();
        if is_rego(path) {
            if self.selection.modules == Modules::None {
                return Err(FileError::Module(name));
            }
            let text = text.to_owned();
            self.contents.modules.push(Module { file, text });
            return Ok(());
        }
        let parsed = if in_folder {
            manifest::read(text)
        } else {
            manifest::documents(text)
        };
        let parsed = parsed.map_err(|error| FileError::Manifest {
            name: name.clone(),
            error,
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
    if path.as_os_str() == STDIN {
        "standard input".to_owned()
    } else {
        shown(path.strip_prefix("./").unwrap_or(path))
    }
}

/// Reads everything up to one byte more than the limit.
fn bounded(reader: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
