//! The paths that pods may read from the real service.

use regex::{RegexSet, RegexSetBuilder};

use super::reach::{can_match, never_matching};
use super::{CanonicalPath, Route, child};

/// Paths below the version that pods may ask of the real service by default.
const SAFE: &[&str] = &[
    "meta-data/placement(/.*)?",
    "meta-data/services(/.*)?",
    "meta-data/(instance-id|instance-type|local-ipv4|local-hostname|hostname|mac)",
    "dynamic/instance-identity/document",
];

/// Why an expression is not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AllowError {
    /// It does not compile.
    #[error(transparent)]
    Malformed(#[from] regex::Error),
    /// It would open nothing.
    #[error(
        "{pattern:?} matches no path that can be opened: it must match the whole path below the version, without a slash at either end{}",
        advice(.instead.as_deref())
    )]
    Never {
        /// The expression, or the alternative of it.
        pattern: String,
        /// An expression that opens what may have been meant.
        instead: Option<String>,
    },
}

fn advice(instead: Option<&str>) -> String {
    match instead {
        Some(instead) => format!("; write {instead}"),
        None => ", such as meta-data/ami-id; iam, identity-credentials and api are never opened, \
                 and user-data only by that word"
            .to_owned(),
    }
}

/// The paths that pods may read from the real service.
#[derive(Debug, Clone)]
pub struct AllowList {
    paths: RegexSet,
    user_data: bool,
}

impl AllowList {
    /// The safe paths and those that `more` matches: regular expressions on the path below the
    /// version (`meta-data/ami-id`), anchored at both ends. `user-data` opens only for an
    /// expression that has the word in it, since node bootstrap secrets are kept there.
    ///
    /// # Errors
    /// The expression that does not compile, with the reason, or that can match no path, with what
    /// to write instead.
    pub fn new(more: &[String]) -> Result<Self, AllowError> {
        let extra = more.iter().map(|pattern| trimmed(pattern));
        for pattern in extra.clone() {
            regex::Regex::new(pattern)?;
            if let Some(never) = never_matching(pattern) {
                return Err(AllowError::Never {
                    pattern: never.to_owned(),
                    instead: meant(never),
                });
            }
        }
        let patterns = SAFE
            .iter()
            .copied()
            .chain(extra)
            .map(|pattern| format!(r"\A(?:{pattern})\z"));
        Ok(Self {
            paths: RegexSetBuilder::new(patterns)
                .size_limit(1024 * 1024)
                .build()?,
            user_data: more.iter().any(|pattern| pattern.contains("user-data")),
        })
    }

    /// Returns whether the real service may be asked for `path`.
    pub fn allows(&self, path: &CanonicalPath<'_>) -> bool {
        if path.route() != Route::Other {
            return false;
        }
        if child(path.below, "user-data").is_some() && !self.user_data {
            return false;
        }
        self.paths.is_match(path.below)
    }

    /// Returns whether the answer for `path` stays the same while the instance runs.
    pub fn is_static(&self, path: &CanonicalPath<'_>) -> bool {
        let first = self.paths.matches(path.below).iter().next();
        first.is_some_and(|index| index < SAFE.len())
    }
}

/// An expression without what may stand at its start to no effect.
fn trimmed(pattern: &str) -> &str {
    pattern.trim_start_matches(['^', '/'])
}

/// Guesses the intent of an expression that matches nothing: the same expression without a leading
/// version and without a trailing slash.
fn meant(pattern: &str) -> Option<String> {
    let trees = ["meta-data", "dynamic", "user-data"];
    let start = trees
        .into_iter()
        .filter_map(|tree| pattern.find(tree))
        .min();
    let from_tree = pattern.get(start?..)?;
    let bare = from_tree.trim_end_matches('$').trim_end_matches('/');
    [from_tree, bare]
        .into_iter()
        .find(|candidate| regex::Regex::new(candidate).is_ok() && can_match(candidate))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_expression_that_opens_nothing_is_refused_with_what_to_write() {
        for (pattern, told) in [
            ("/latest/meta-data", Some("meta-data")),
            ("latest/meta-data/ami-id", Some("meta-data/ami-id")),
            ("/meta-data/.*/", Some("meta-data/.*")),
            ("meta-data/tags/instance/$", Some("meta-data/tags/instance")),
            ("1.0/meta-data/ami-id/", Some("meta-data/ami-id")),
            (r"\d+-\d+-\d+/dynamic/.*", Some("dynamic/.*")),
            ("meta-data//ami-id", None),
            (r"meta-data/\.\./user-data", None),
            ("meta-data/iam/info", None),
            ("meta-data/iam/.*", None),
            ("meta-data/IAM", None),
            ("meta-data/identity-credentials/ec2/info", None),
            ("api/token", None),
            ("metadata/ami-id", None),
            ("ami-id", None),
            ("meta-data/ami id", None),
            ("meta-data/ami-id?x=1$^", None),
            ("meta-data/%69am", None),
            ("user.data", None),
            ("", None),
            ("meta-data/ami-id|/meta-data/mac", Some("meta-data/mac")),
            (
                "(meta-data/ami-id|latest/meta-data/mac)",
                Some("meta-data/mac"),
            ),
        ] {
            match AllowList::new(&[pattern.into()]) {
                Err(AllowError::Never { instead, .. }) => {
                    assert_eq!(instead.as_deref(), told, "{pattern}");
                    let told = AllowList::new(&[pattern.into()]).unwrap_err().to_string();
                    assert!(told.contains("below the version"), "{told}");
                }
                other => panic!("{pattern}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn a_path_can_be_opened_by_its_own_text_exactly_if_its_text_is_taken(
            below in "(meta-data|dynamic|user-data|api|latest)(/(iam|IAM|i|ia|iamx|identity-credentials|identity|a%|[.]{0,4}|[a-z.]{0,4})){0,3}",
        ) {
            let text = format!("/latest/{below}");
            let opened = AllowList::new(&[regex::escape(&below)]);
            let is_path = CanonicalPath::parse(&text).is_ok();
            prop_assert_eq!(opened.is_ok_and(|list| {
                is_path && list.allows(&CanonicalPath::parse(&text).unwrap())
            }), is_path && can_match(&regex::escape(&below)), "{}", text);
        }
    }

    #[test]
    fn an_expression_that_opens_something_is_taken() {
        for pattern in [
            "meta-data",
            "^/meta-data/ami-id$",
            "meta-data/tags/instance/.*",
            "meta-data/tags/instance(/.*)?",
            "meta-data/(iam|ami-id)",
            "meta-data/i.*",
            "meta-data/iam-x",
            "meta-data/identity-credentials2",
            "meta-data/.../x",
            ".*",
            ".*ami.*",
            "(?i)meta-data/ami-id|META-DATA/mac",
            "user-data",
            "/user-data",
            "dynamic/instance-identity/(pkcs7|rsa2048)",
            r"meta-data/network/interfaces/macs/\w\w(:\w\w){5}/subnet-id",
            r"\bmeta-data/mac\b",
        ] {
            assert!(AllowList::new(&[pattern.into()]).is_ok(), "{pattern}");
        }
    }
}
