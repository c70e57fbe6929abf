//! Patterns of files to skip, in the syntax of `.gitignore`.

use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

/// A pattern. Without a slash it matches names of files and directories, otherwise paths.
#[derive(Debug, Clone)]
pub struct Pattern {
    glob: GlobMatcher,
    is_path: bool,
}

/// The reason why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is empty.
    #[error("write a name or a path, such as values.yaml or chart/templates")]
    Empty,
    /// It is not a valid glob.
    #[error("invalid pattern: {0}")]
    Glob(globset::ErrorKind),
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// Returns a [`PatternError`] for an invalid pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let trimmed = text.trim_end_matches('/');
        let trimmed = trimmed.strip_prefix("./").unwrap_or(trimmed);
        if trimmed.is_empty() {
            return Err(PatternError::Empty);
        }
        let glob = GlobBuilder::new(trimmed)
            .literal_separator(true)
            .build()
            .map_err(|error| PatternError::Glob(error.kind().clone()))?;
        Ok(Self {
            glob: glob.compile_matcher(),
            is_path: trimmed.contains('/'),
        })
    }
}

/// All patterns of a command.
#[derive(Debug)]
pub struct Ignore(Vec<Pattern>);

impl Ignore {
    /// Builds a list of patterns. Returns `None` if it is empty.
    pub fn of(patterns: Vec<Pattern>) -> Option<Self> {
        (!patterns.is_empty()).then_some(Self(patterns))
    }

    /// Returns whether a file is skipped, because it or a directory above it matches. Paths are
    /// matched both relative to `root`, the given directory, and as they were given.
    pub fn matches(&self, root: &Path, file: &Path) -> bool {
        let given = file.strip_prefix("./").unwrap_or(file);
        let below = file.strip_prefix(root).ok();
        self.0.iter().any(|pattern| {
            if pattern.is_path {
                [Some(given), below].into_iter().flatten().any(|path| {
                    let mut above = path.ancestors();
                    above.any(|path| pattern.glob.is_match(path))
                })
            } else {
                below
                    .filter(|below| *below != Path::new(""))
                    .unwrap_or(given)
                    .components()
                    .any(|name| pattern.glob.is_match(Path::new(name.as_os_str())))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(given: &str, root: &str, file: &str) -> bool {
        let patterns = vec![Pattern::parse(given).unwrap()];
        Ignore::of(patterns)
            .unwrap()
            .matches(Path::new(root), Path::new(file))
    }

    #[test]
    fn names_match_anywhere_and_paths_from_the_folder() {
        for (given, file, expected) in [
            ("values.yaml", "deploy/values.yaml", true),
            ("values.yaml", "deploy/a/values.yaml", true),
            ("values*.yaml", "deploy/values-prod.yaml", true),
            ("templates", "deploy/chart/templates/a.yaml", true),
            ("templates/", "deploy/chart/templates/a.yaml", true),
            ("chart/templates", "deploy/chart/templates/a.yaml", true),
            (
                "deploy/chart/templates",
                "deploy/chart/templates/a.yaml",
                true,
            ),
            ("chart/*.yaml", "deploy/chart/templates/a.yaml", false),
            ("chart/**", "deploy/chart/templates/a.yaml", true),
            ("**/templates/*.yaml", "deploy/chart/templates/a.yaml", true),
            ("templates/a.yaml", "deploy/chart/templates/a.yaml", false),
            // The directory itself was requested.
            ("deploy", "deploy/a.yaml", false),
            ("*.json", "deploy/a.yaml", false),
        ] {
            assert_eq!(ignored(given, "deploy", file), expected, "{given} {file}");
        }
        assert!(ignored("a.yaml", "./x/a.yaml", "./x/a.yaml"));
        assert!(ignored("./x/a.yaml", "./x/a.yaml", "./x/a.yaml"));
        for wrong in ["", "/", "a[", "{a"] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
