//! A file of tests, and the files that it names.

use std::path::{Component, Path, PathBuf};

use rolegate_policy::suite::{Objects as Subject, PolicyTest};

/// A file of tests.
pub(super) struct TestFile {
    /// Its path.
    pub(super) file: String,
    /// Its content.
    pub(super) test: PolicyTest,
}

impl TestFile {
    /// Resolves a path in the file relative to the file's directory.
    pub(super) fn resolved(&self, path: &str) -> PathBuf {
        let folder = Path::new(&self.file).parent().unwrap_or(Path::new(""));
        let whole = folder.join(path);
        let short = without_detours(&whole);
        // A symbolic link could lead elsewhere.
        match (whole.canonicalize(), short.canonicalize()) {
            (Ok(one), Ok(other)) if one == other => short,
            _ => whole,
        }
    }

    /// Returns the object files that its cases name.
    pub(super) fn subjects(&self) -> impl Iterator<Item = PathBuf> {
        let subjects = self
            .test
            .cases
            .iter()
            .flat_map(|case| [Some(&case.objects), case.old.as_ref()]);
        subjects.flatten().filter_map(|subject| match subject {
            Subject::File(path) => self.resolved(path).canonicalize().ok(),
            Subject::Here(_) => None,
        })
    }
}

/// Removes `.` from a path, and directories that `..` leaves again.
fn without_detours(path: &Path) -> PathBuf {
    let mut short = PathBuf::new();
    for part in path.components() {
        let leaves = matches!(short.components().next_back(), Some(Component::Normal(_)));
        match part {
            Component::CurDir => {}
            Component::ParentDir if leaves => {
                short.pop();
            }
            part => short.push(part),
        }
    }
    if short.as_os_str().is_empty() {
        ".".into()
    } else {
        short
    }
}
