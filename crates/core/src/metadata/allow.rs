//! The allow list of paths that pods may read from the real metadata service.

use regex::{RegexSet, RegexSetBuilder};

use super::reach::{can_match, never_matching};
use super::{CanonicalPath, Route, child};

/// Paths below the version that pods may read by default.
const SAFE: &[&str] = &[
    "meta-data/placement(/.*)?",
    "meta-data/services(/.*)?",
    "meta-data/(instance-id|instance-type|local-ipv4|local-hostname|hostname|mac)",
    "dynamic/instance-identity/document",
];

/// The reason why an expression is rejected.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AllowError {
    /// The expression does not compile.
    #[error(transparent)]
    Malformed(#[from] regex::Error),
    /// The expression would allow no path.
    #[error(
        "{pattern:?} matches no path that can be allowed: it must match the whole path below the \
         version, without a slash at either end{}",
        advice(.instead.as_deref())
    )]
    Never {
        /// The expression, or one alternative of it.
        pattern: String,
        /// A suggested replacement.
        instead: Option<String>,
    },
}

fn advice(instead: Option<&str>) -> String {
    match instead {
        Some(instead) => format!("; use {instead}"),
        None => ", such as meta-data/ami-id; iam, identity-credentials and api can never be \
                 allowed, and user-data only by an expression with that word"
            .to_owned(),
    }
}

/// The allow list of paths that pods may read from the real metadata service.
#[derive(Debug, Clone)]
pub struct AllowList {
    paths: RegexSet,
    user_data: bool,
}

impl AllowList {
    /// Creates a list of the default paths and those that `more` matches: regular expressions for
    /// the path below the version (`meta-data/ami-id`), anchored at both ends. `user-data` contains
    /// bootstrap secrets of nodes, so an expression must contain the word to allow it.
    ///
    /// # Errors
    /// [`AllowError`] for an expression that does not compile, or that cannot match any path, with
    /// a suggestion.
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

    /// Returns true if `path` may be forwarded to the real service.
    pub fn allows(&self, path: &CanonicalPath<'_>) -> bool {
        if path.route() != Route::Other {
            return false;
        }
        if child(path.below, "user-data").is_some() && !self.user_data {
            return false;
        }
        self.paths.is_match(path.below)
    }

    /// Returns true if the response for `path` does not change while the instance runs.
    pub fn is_static(&self, path: &CanonicalPath<'_>) -> bool {
        let first = self.paths.matches(path.below).iter().next();
        first.is_some_and(|index| index < SAFE.len())
    }
}

/// Strips a prefix without effect from an expression.
fn trimmed(pattern: &str) -> &str {
    pattern.trim_start_matches(['^', '/'])
}

/// Suggests a replacement for an expression that matches nothing: the same expression without a
/// leading version and without a trailing slash.
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
    fn an_expression_without_effect_is_rejected_with_advice() {
        for (pattern, actual) in [
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
            ("meta-data/tags$/instance", None),
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
                    assert_eq!(instead.as_deref(), actual, "{pattern}");
                    let error = AllowList::new(&[pattern.into()]).unwrap_err().to_string();
                    assert!(error.contains("below the version"), "{error}");
                    let advice = match instead {
                        Some(instead) => format!("; use {instead}"),
                        None => "such as meta-data/ami-id; iam".to_owned(),
                    };
                    assert!(error.contains(&advice), "{error}");
                }
                other => panic!("{pattern}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn a_path_is_allowed_exactly_if_its_expression_is_accepted(
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
