//! Paths of the metadata service: one canonical form, and what each path means.
//!
//! A path is either canonical or refused; it is never repaired. Only the canonical text is
//! matched and forwarded, so a spelling that we read one way and the real service another way
//! cannot exist.

use regex::{RegexSet, RegexSetBuilder};

/// Longest path taken, bytes: a role ARN and its prefix fit.
const MAX_PATH: usize = 1536;

/// What pods may ask of the real service by default, below the version.
const SAFE: &[&str] = &[
    "meta-data/placement(/.*)?",
    "meta-data/services(/.*)?",
    "meta-data/(instance-id|instance-type|local-ipv4|local-hostname|hostname|mac)",
    "dynamic/instance-identity/document",
];

/// A request's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// `api/token`: a token of version 2.
    Token,
    /// `meta-data/iam/security-credentials`: the name of the pod's role.
    RoleName,
    /// `meta-data/iam/security-credentials/ROLE`: its credentials.
    Credentials(&'a str),
    /// `meta-data/iam/info`.
    Info,
    /// Everything else: for the real service, if the allow-list has it.
    Other,
    /// Never forwarded, whatever the allow-list says.
    Closed,
}

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Longer than any path that means something.
    #[error("the path is longer than {MAX_PATH} characters")]
    TooLong,
    /// Doubled slashes, dot segments, percent-encoding, a query, or characters that no path has.
    #[error(
        "the path is not in canonical form: write it plainly, without //, dot segments, percent-encoding or a query"
    )]
    NotCanonical,
    /// The first segment is no version.
    #[error("the path does not start with a version: write /latest/…")]
    NoVersion,
}

/// A canonical path: `/VERSION/…` without a slash at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanonicalPath<'a> {
    whole: &'a str,
    below: &'a str,
}

impl<'a> CanonicalPath<'a> {
    /// Checks the target of a request. One slash at the end is accepted, as by the real service;
    /// nothing percent-encoded is: every character of a path that means something is plain.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn parse(target: &'a str) -> Result<Self, PathError> {
        if target.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        let whole = target.strip_suffix('/').unwrap_or(target);
        let segments = whole.strip_prefix('/').ok_or(PathError::NotCanonical)?;
        if !is_plain(segments.as_bytes()) {
            return Err(PathError::NotCanonical);
        }
        let (version, below) = segments.split_once('/').ok_or(PathError::NoVersion)?;
        if !is_version(version) {
            return Err(PathError::NoVersion);
        }
        Ok(Self { whole, below })
    }

    /// The path, as it may be forwarded: without a slash at the end.
    pub fn as_str(&self) -> &'a str {
        self.whole
    }

    /// What the path means.
    pub fn route(&self) -> Route<'a> {
        if self.below == "api/token" {
            return Route::Token;
        }
        if let Some(iam) = child(self.below, "meta-data/iam") {
            return match iam {
                "security-credentials" => Route::RoleName,
                "info" => Route::Info,
                _ => match child(iam, "security-credentials") {
                    Some(role) if !role.is_empty() => Route::Credentials(role),
                    _ => Route::Closed,
                },
            };
        }
        let closed = child(self.below, "meta-data/identity-credentials").is_some()
            || child(self.below, "api").is_some();
        if closed { Route::Closed } else { Route::Other }
    }
}

/// Whether a character is one of paths that mean something.
fn is_plain_character(byte: u8) -> bool {
    matches!(
        byte,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9'
            | b'+' | b',' | b'-' | b'.' | b':' | b'=' | b'@' | b'_' | b'~'
    )
}

/// Whether all segments are of plain characters, and none is empty or made of dots alone. One
/// pass: this is done for each request.
fn is_plain(segments: &[u8]) -> bool {
    let mut length = 0usize;
    let mut dots = 0usize;
    for &byte in segments {
        if byte == b'/' {
            if length == dots && length < 3 {
                return false;
            }
            (length, dots) = (0, 0);
            continue;
        }
        if !is_plain_character(byte) {
            return false;
        }
        length += 1;
        dots += usize::from(byte == b'.');
    }
    !(length == dots && length < 3)
}

/// What follows `parent` and a slash in `path`; empty for `parent` itself. Case is ignored, so
/// that a service which ignored it too could not be tricked.
fn child<'a>(path: &'a str, parent: &str) -> Option<&'a str> {
    let start = path.get(..parent.len())?;
    let rest = path.get(parent.len()..)?;
    if !start.eq_ignore_ascii_case(parent) {
        return None;
    }
    if rest.is_empty() {
        return Some("");
    }
    rest.strip_prefix('/')
}

/// `latest`, a date, or a version of before the dates such as `1.0`.
fn is_version(text: &str) -> bool {
    let shape: Vec<usize> = text.split('-').map(str::len).collect();
    let digits = |separator: u8| text.bytes().all(|b| b.is_ascii_digit() || b == separator);
    text == "latest" || text == "1.0" || (shape == [4, 2, 2] && digits(b'-'))
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
    /// The expression that does not compile, with the reason.
    pub fn new(more: &[String]) -> Result<Self, regex::Error> {
        let extra = more
            .iter()
            .map(|pattern| pattern.trim_start_matches(['^', '/']));
        for pattern in extra.clone() {
            regex::Regex::new(pattern)?;
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

    /// Whether the real service may be asked for `path`.
    pub fn allows(&self, path: &CanonicalPath<'_>) -> bool {
        if path.route() != Route::Other {
            return false;
        }
        if child(path.below, "user-data").is_some() && !self.user_data {
            return false;
        }
        self.paths.is_match(path.below)
    }

    /// Whether what `path` says stays the same while the instance runs.
    pub fn is_static(&self, path: &CanonicalPath<'_>) -> bool {
        let first = self.paths.matches(path.below).iter().next();
        first.is_some_and(|index| index < SAFE.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(target: &str) -> Result<Route<'_>, PathError> {
        CanonicalPath::parse(target).map(|path| path.route())
    }

    #[test]
    fn only_safe_paths_stay_the_same_while_the_instance_runs() {
        let list = AllowList::new(&["meta-data/tags/.*".into(), "meta-data/.*".into()]).unwrap();
        for (target, is_static) in [
            ("/latest/meta-data/instance-id", true),
            ("/latest/meta-data/placement/region", true),
            ("/latest/dynamic/instance-identity/document", true),
            // Of these only what an operator added is true.
            ("/latest/meta-data/tags/instance", false),
            ("/latest/meta-data/ami-id", false),
            ("/latest/user-data", false),
        ] {
            let path = CanonicalPath::parse(target).unwrap();
            assert_eq!(path.as_str(), target);
            assert_eq!(list.is_static(&path), is_static, "{target}");
        }
        let none = AllowList::new(&[]).unwrap();
        let first = CanonicalPath::parse("/latest/meta-data/placement/region").unwrap();
        assert!(none.is_static(&first));
    }

    #[test]
    fn what_paths_mean() {
        let iam = "/latest/meta-data/iam";
        assert_eq!(route("/latest/api/token"), Ok(Route::Token));
        for version in ["latest", "2021-07-15", "1.0"] {
            for end in ["", "/"] {
                let target = format!("/{version}/meta-data/iam/security-credentials{end}");
                assert_eq!(route(&target), Ok(Route::RoleName), "{target}");
            }
        }
        assert_eq!(
            route(&format!("{iam}/security-credentials/team/reader")),
            Ok(Route::Credentials("team/reader"))
        );
        assert_eq!(
            route(&format!(
                "{iam}/security-credentials/arn:aws:iam::123456789012:role/x"
            )),
            Ok(Route::Credentials("arn:aws:iam::123456789012:role/x"))
        );
        assert_eq!(route(&format!("{iam}/info/")), Ok(Route::Info));
        assert_eq!(route("/latest/meta-data/instance-id"), Ok(Route::Other));
        for closed in [
            "/latest/meta-data/iam",
            "/latest/meta-data/iam/",
            "/latest/meta-data/iam/other",
            "/latest/meta-data/IAM/x",
            "/latest/Meta-Data/iam/x",
            "/latest/meta-data/identity-credentials",
            "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            "/latest/api/other",
        ] {
            assert_eq!(route(closed), Ok(Route::Closed), "{closed}");
        }
    }

    #[test]
    fn what_is_not_canonical_is_refused() {
        for target in [
            "",
            "latest/meta-data",
            "//latest/meta-data",
            "/latest//meta-data",
            "/latest/meta-data//",
            "/latest/./meta-data",
            "/latest/meta-data/../user-data",
            "/latest/meta-data/%69am/info",
            "/latest/meta-data/iam%2Finfo",
            "/latest/meta-data/iam/info?x=1",
            "/latest/meta-data/iam/info#x",
            "/latest/meta-data/iam/info;x",
            "/latest\\meta-data",
            "/latest/meta-data/é",
            "/latest/meta-data/ x",
            "http://169.254.169.254/latest/meta-data",
        ] {
            assert_eq!(route(target), Err(PathError::NotCanonical), "{target}");
        }
        for target in [
            "/Latest/x",
            "/2.0/x",
            "/2021-7-15/x",
            "/latest",
            "/latest/",
            "/x/y",
        ] {
            assert_eq!(route(target), Err(PathError::NoVersion), "{target}");
        }
        assert_eq!(
            route(&format!("/latest/{}", "x".repeat(MAX_PATH))),
            Err(PathError::TooLong)
        );
    }

    #[test]
    fn only_the_list_is_let_through() {
        let allows =
            |list: &AllowList, target: &str| list.allows(&CanonicalPath::parse(target).unwrap());
        let default = AllowList::new(&[]).unwrap();
        for target in [
            "/latest/meta-data/placement/region",
            "/latest/meta-data/placement/",
            "/2021-07-15/meta-data/instance-id",
            "/latest/meta-data/services/domain",
            "/latest/dynamic/instance-identity/document",
        ] {
            assert!(allows(&default, target), "{target}");
        }
        let secrets = [
            "/latest/user-data",
            "/latest/User-Data",
            "/latest/meta-data/iam/security-credentials/node",
            "/latest/meta-data/iam/info",
            "/latest/meta-data/iam",
            "/latest/meta-data/identity-credentials/ec2/info",
            "/latest/meta-data/Identity-Credentials/ec2/info",
            "/latest/api/token",
        ];
        for target in secrets.iter().chain(&[
            "/latest/meta-data",
            "/latest/meta-data/instance-id/x",
            "/latest/meta-data/instance-id-2",
            "/latest/meta-data/public-keys/0/openssh-key",
            "/latest/dynamic/instance-identity/pkcs7",
            "/latest/dynamic/instance-identity/signature",
        ]) {
            assert!(!allows(&default, target), "{target}");
        }
        let all = AllowList::new(&[".*".into()]).unwrap();
        assert!(allows(&all, "/latest/meta-data/ami-id"));
        for target in secrets {
            assert!(!allows(&all, target), "{target}");
        }
        let named = AllowList::new(&["/user-data".into()]).unwrap();
        assert!(allows(&named, "/latest/user-data"));
        assert!(AllowList::new(&["(".into()]).is_err());
        assert!(AllowList::new(&["a)|(.*".into()]).is_err());
    }

    proptest! {
        #[test]
        fn canonical_paths_are_their_own_canonical_form(target in "(/[a-zA-Z0-9._~:%-]{0,6}){1,6}/?") {
            if let Ok(path) = CanonicalPath::parse(&target) {
                prop_assert_eq!(CanonicalPath::parse(path.as_str()), Ok(path));
                prop_assert!(!path.as_str().contains("//"));
                prop_assert!(!path.as_str().contains('%'));
            }
        }

        #[test]
        fn no_path_with_iam_in_any_case_is_forwarded(
            version in "latest|2021-07-15",
            iam in "[iI][aA][mM]|[iI]dentity-[cC]redentials",
            rest in "(/[a-z-]{1,20}){0,3}",
        ) {
            let list = AllowList::new(&[".*".into()]).unwrap();
            let target = format!("/{version}/meta-data/{iam}{rest}");
            let path = CanonicalPath::parse(&target).unwrap();
            prop_assert!(!list.allows(&path));
        }
    }
}
