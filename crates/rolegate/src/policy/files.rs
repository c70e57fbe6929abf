//! Reads the files that flags name.

use std::path::{Path, PathBuf};

use rolegate_inventory::files::{self, Contents, Selection};
use rolegate_inventory::objects::Objects;

use super::errors::of_file;

/// Rejects invalid paths before anything is read.
///
/// # Errors
/// Returns a usage error if standard input is named twice.
pub(crate) fn validate<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> anyhow::Result<()> {
    files::validate(paths).map_err(of_file)
}

/// Reads everything at `paths`, see [`files::read`].
///
/// # Errors
/// Returns an error for unreadable content, with file, line and advice, and for an empty path.
pub(super) fn read(paths: &[PathBuf], selection: Selection<'_>) -> anyhow::Result<Contents> {
    files::read(paths, selection).map_err(of_file)
}

/// Reads the rules and objects of files.
///
/// # Errors
/// Returns an error as [`read`] does.
pub(crate) fn objects(paths: &[PathBuf]) -> anyhow::Result<Objects> {
    Objects::of_files(paths).map_err(of_file)
}

/// Reads one file.
///
/// # Errors
/// Returns an error if it cannot be read.
pub(crate) fn bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    files::bytes(path).map_err(of_file)
}
