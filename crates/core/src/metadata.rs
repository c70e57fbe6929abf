//! Paths of the instance metadata service: their canonical form and their meaning.
//!
//! A path is either canonical or rejected; it is never normalized. Only the canonical text is
//! matched and forwarded, so the agent and the real service cannot interpret a spelling
//! differently. The name of a role may be percent-encoded, since it is compared and never
//! forwarded.

mod allow;
mod reach;

use std::fmt;

pub use allow::{AllowError, AllowList};

/// Maximum length of a path, in bytes. It fits a prefix and a role ARN, even percent-encoded.
const MAX_PATH: usize = 1536;

/// The path below the version that lists the pod's role.
const ROLES: &str = "meta-data/iam/security-credentials";

/// The versions, as the real service lists them at its root.
pub const VERSIONS: &str = "1.0
2007-01-19
2007-03-01
2007-08-29
2007-10-10
2007-12-15
2008-02-01
2008-09-01
2009-04-04
2011-01-01
2011-05-01
2012-01-12
2014-02-25
2014-11-05
2015-10-20
2016-04-19
2016-06-30
2016-09-02
2018-03-28
2018-08-17
2018-09-24
2019-10-01
2020-10-27
2021-01-03
2021-03-23
2021-07-15
2022-07-09
2022-09-24
2024-04-11
latest";

/// The list that the real service returns for a version, on an instance without user data.
pub const TREES: &str = "dynamic\nmeta-data";

/// The meaning of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/`: the list of [`VERSIONS`].
    Versions,
    /// A version alone: the list of [`TREES`].
    Trees,
    /// `api/token`: a token of IMDSv2.
    Token,
    /// `meta-data/iam/security-credentials`: the name of the pod's role.
    RoleName,
    /// `meta-data/iam/security-credentials/ROLE`: credentials of the role.
    Credentials(RequestedRole<'a>),
    /// `meta-data/iam/info`: information on the instance profile.
    Info,
    /// Any other path, forwarded to the real service if the allow list contains it.
    Other,
    /// A path that is never forwarded, whatever the allow list contains.
    Closed,
}

/// A requested role name, which may be percent-encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestedRole<'a>(&'a str);

impl RequestedRole<'_> {
    /// Returns whether the decoded name equals `name`.
    pub fn is(&self, name: &[u8]) -> bool {
        self.0.as_bytes() == name || decoded(self.0).eq(name.iter().copied().map(Some))
    }
}

impl fmt::Display for RequestedRole<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        decoded(self.0)
            .flatten()
            .try_for_each(|byte| fmt::Write::write_char(f, char::from(byte)))
    }
}

/// Decodes percent-encoding; yields `None` for an invalid escape.
fn decoded(text: &str) -> impl Iterator<Item = Option<u8>> {
    let mut bytes = text.bytes();
    std::iter::from_fn(move || {
        let byte = bytes.next()?;
        if byte != b'%' {
            return Some(Some(byte));
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let value = digit().zip(digit()).map(|(high, low)| high * 16 + low);
        Some(value.and_then(|value| u8::try_from(value).ok()))
    })
}

/// The reason why a path is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path is longer than any valid path.
    #[error("the path is longer than {MAX_PATH} characters")]
    TooLong,
    /// The path has doubled slashes, dot segments, percent-encoding, a query, or characters that no
    /// valid path has.
    #[error(
        "the path is not in canonical form: remove //, dot segments, percent-encoding and query"
    )]
    NotCanonical,
    /// The first segment is not a version, as in paths of other clouds' metadata services.
    #[error("the path does not start with a version: use /latest/…")]
    NoVersion,
}

/// A canonical path: `/`, or `/VERSION` with an optional path below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanonicalPath<'a> {
    whole: &'a str,
    /// The part after the version, without a trailing slash.
    below: &'a str,
}

impl<'a> CanonicalPath<'a> {
    /// Validates the target of a request. One trailing slash is accepted, as by the real service.
    /// Only the name of a role may be percent-encoded, since all other valid paths consist of plain
    /// characters.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn parse(target: &'a str) -> Result<Self, PathError> {
        if target.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        let segments = target.strip_prefix('/').ok_or(PathError::NotCanonical)?;
        if segments.is_empty() {
            return Ok(Self {
                whole: target,
                below: "",
            });
        }
        let end = segments.find(['/', '?']).unwrap_or(segments.len());
        let (version, rest) = segments.split_at(end);
        if !is_plain(version.bytes().map(Some)) {
            return Err(PathError::NotCanonical);
        }
        // Precedes the other checks so that clients of another cloud's service always get this
        // error.
        if !is_version(version) {
            return Err(PathError::NoVersion);
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.is_empty() {
            return Ok(Self {
                whole: target,
                below: "",
            });
        }
        let below = rest.strip_prefix('/').ok_or(PathError::NotCanonical)?;
        if is_plain(below.bytes().map(Some)) || is_encoded_role(below) {
            Ok(Self {
                whole: target,
                below,
            })
        } else {
            Err(PathError::NotCanonical)
        }
    }

    /// Returns the path to forward. It keeps a trailing slash, which the real service may use to
    /// distinguish a directory.
    pub fn as_str(&self) -> &'a str {
        self.whole
    }

    /// Returns the meaning of the path.
    pub fn route(&self) -> Route<'a> {
        if self.below.is_empty() {
            return if self.whole == "/" {
                Route::Versions
            } else {
                Route::Trees
            };
        }
        if self.below == "api/token" {
            return Route::Token;
        }
        if let Some(iam) = child(self.below, "meta-data/iam") {
            return match iam {
                "security-credentials" => Route::RoleName,
                "info" => Route::Info,
                _ => match child(iam, "security-credentials") {
                    Some(role) if !role.is_empty() => Route::Credentials(RequestedRole(role)),
                    _ => Route::Closed,
                },
            };
        }
        let closed = child(self.below, "meta-data/identity-credentials").is_some()
            || child(self.below, "api").is_some();
        if closed { Route::Closed } else { Route::Other }
    }
}

/// Returns true if `below` requests a percent-encoded role name that is plain after decoding.
fn is_encoded_role(below: &str) -> bool {
    let role = below.strip_prefix(ROLES);
    let role = role.and_then(|role| role.strip_prefix('/'));
    role.is_some_and(|role| is_plain(decoded(role)))
}

/// Returns true if valid paths may contain the character.
fn is_plain_character(byte: u8) -> bool {
    matches!(
        byte,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9'
            | b'+' | b',' | b'-' | b'.' | b':' | b'=' | b'@' | b'_' | b'~'
    )
}

/// Returns true if all segments consist of plain characters and none is empty, `.` or `..`. A
/// single pass, since it runs for every request.
fn is_plain(segments: impl Iterator<Item = Option<u8>>) -> bool {
    let mut length = 0usize;
    let mut dots = 0usize;
    for byte in segments {
        let Some(byte) = byte else {
            return false;
        };
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

/// Returns the part of `path` below `parent` and a slash; empty for `parent` itself. Case is
/// ignored so that a case-insensitive service could not be tricked.
fn child<'a>(path: &'a str, parent: &str) -> Option<&'a str> {
    let start = path.get(..parent.len())?;
    let rest = path.get(parent.len()..)?;
    // Clients usually send the exact text, which is faster to compare.
    if start != parent && !start.eq_ignore_ascii_case(parent) {
        return None;
    }
    if rest.is_empty() {
        return Some("");
    }
    rest.strip_prefix('/')
}

/// Returns true for `latest`, a date, or a version older than the dates, such as `1.0`.
fn is_version(text: &str) -> bool {
    let is_date = || {
        let digits = text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'-');
        digits && text.split('-').map(str::len).eq([4, 2, 2])
    };
    text == "latest" || text == "1.0" || is_date()
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
            // Allowed only if an operator adds it.
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
    fn a_segment_of_three_dots_is_a_name() {
        assert_eq!(route("/latest/meta-data/.../x"), Ok(Route::Other));
        for climbing in ["/latest/meta-data/../x", "/latest/meta-data/./x"] {
            assert!(route(climbing).is_err(), "{climbing}");
        }
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
            Ok(Route::Credentials(RequestedRole("team/reader")))
        );
        assert_eq!(
            route(&format!(
                "{iam}/security-credentials/arn:aws:iam::123456789012:role/x"
            )),
            Ok(Route::Credentials(RequestedRole(
                "arn:aws:iam::123456789012:role/x"
            )))
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
    fn the_root_and_a_version_alone_are_listed() {
        assert_eq!(route("/"), Ok(Route::Versions));
        for target in ["/latest", "/latest/", "/2021-07-15", "/1.0/"] {
            assert_eq!(route(target), Ok(Route::Trees), "{target}");
        }
        let mut versions = VERSIONS.lines();
        assert!(versions.clone().all(is_version));
        assert!(versions.next() == Some("1.0") && versions.next_back() == Some("latest"));
    }

    #[test]
    fn the_name_of_a_role_alone_may_be_percent_encoded() {
        let roles = "/latest/meta-data/iam/security-credentials";
        for (encoded, role) in [
            ("team%2Freader", "team/reader"),
            ("team%2freader", "team/reader"),
            (
                "arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fx",
                "arn:aws:iam::123456789012:role/x",
            ),
            ("a%2Bb%3D%2C%40", "a+b=,@"),
            ("%72eader", "reader"),
            ("reader", "reader"),
            ("reader/", "reader"),
        ] {
            let target = format!("{roles}/{encoded}");
            let Ok(Route::Credentials(requested)) = route(&target) else {
                panic!("{target}: {:?}", route(&target));
            };
            assert!(requested.is(role.as_bytes()), "{encoded}");
            assert!(
                !requested.is(&role.as_bytes()[1..]) && !requested.is(b"writer"),
                "{encoded}"
            );
            assert_eq!(requested.to_string(), role);
        }
        for target in [
            // Decoding happens once; the result must be plain.
            "/latest/meta-data/iam/security-credentials/team%252Freader",
            "/latest/meta-data/iam/security-credentials/%2e%2e/info",
            "/latest/meta-data/iam/security-credentials/%2e%2e%2finfo",
            "/latest/meta-data/iam/security-credentials/team%2F%2e%2Freader",
            "/latest/meta-data/iam/security-credentials/team%2F%2Freader",
            "/latest/meta-data/iam/security-credentials/%2Freader",
            "/latest/meta-data/iam/security-credentials/reader%2F",
            "/latest/meta-data/iam/security-credentials/reader%00",
            "/latest/meta-data/iam/security-credentials/reader%0d%0a",
            "/latest/meta-data/iam/security-credentials/reader%20",
            "/latest/meta-data/iam/security-credentials/reader%3Fx",
            "/latest/meta-data/iam/security-credentials/reader%C3%A9",
            "/latest/meta-data/iam/security-credentials/reader%",
            "/latest/meta-data/iam/security-credentials/reader%2",
            "/latest/meta-data/iam/security-credentials/reader%zz",
            "/latest/meta-data/iam/security-credentials/reader%+2",
            "/latest/meta-data/iam/security-credentials/reader%2F?x",
            // Rejected anywhere else, in any spelling.
            "/latest/meta-data/iam/security-credentials%2Freader",
            "/latest/meta-data/iam%2Fsecurity-credentials/reader",
            "/latest/meta-data/iam/Security-Credentials/a%2Fb",
            "/lat%65st/meta-data/iam/security-credentials/reader",
            "/latest/meta-data/placement%2Fregion",
            "/latest/dynamic/%2e%2e/meta-data",
        ] {
            assert_eq!(route(target), Err(PathError::NotCanonical), "{target}");
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
            "/latest?x=1",
            "/?x=1",
            "/./latest",
            "/../latest/meta-data",
            "/latest//",
            "//",
            "/latest/meta-data/iam/info#x",
            "/latest/meta-data/iam/info;x",
            "/latest\\meta-data",
            "/latest/meta-data/é",
            "/latest/meta-data/ x",
            "http://169.254.169.254/latest/meta-data",
        ] {
            assert_eq!(route(target), Err(PathError::NotCanonical), "{target}");
        }
        // Clients of other clouds' services send these paths, and variants of them.
        for target in [
            "/Latest/x",
            "/2.0/x",
            "/2021-7-15/x",
            "/x/y",
            "/x",
            "/computeMetadata/v1/",
            "/metadata/instance?api-version=2021-02-01",
            "/metadata/v1.json",
            "/openstack/latest/meta_data.json",
            "/opc/v2/instance/",
            "/hetzner/v1/metadata/instance-id",
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

    #[test]
    fn a_slash_at_the_end_is_forwarded_and_opens_nothing_more() {
        let list = AllowList::new(&[]).unwrap();
        for (target, allowed) in [
            ("/latest/meta-data/placement/", true),
            ("/latest/meta-data/placement", true),
            ("/latest/meta-data/instance-id/", true),
            ("/latest/meta-data/", false),
            ("/latest/user-data/", false),
            ("/", false),
            ("/latest/", false),
        ] {
            let path = CanonicalPath::parse(target).unwrap();
            assert_eq!(path.as_str(), target);
            assert_eq!(list.allows(&path), allowed, "{target}");
            assert_eq!(list.is_static(&path), allowed, "{target}");
        }
    }

    proptest! {
        #[test]
        fn canonical_paths_are_their_own_canonical_form(target in "(/[a-zA-Z0-9._~:%-]{0,6}){1,6}/?") {
            if let Ok(path) = CanonicalPath::parse(&target) {
                prop_assert_eq!(CanonicalPath::parse(path.as_str()), Ok(path));
                prop_assert!(!path.as_str().contains("//"));
                prop_assert!(!path.as_str().contains('%') || path.route() != Route::Other);
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
