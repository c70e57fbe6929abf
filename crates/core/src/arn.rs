//! Role ARNs, and the base ARN that completes a role name.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Maximum length of an ARN: IAM's 512 characters of path and 64 of name, plus a margin.
const MAX_ARN: usize = 1024;
const MAX_NAME: usize = 64;

/// An invalid role ARN, role name or base ARN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArnError {
    /// The text does not have the form `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`.
    #[error("{0:?} is not a role ARN: write arn:PARTITION:iam::ACCOUNT:role/NAME")]
    NotARole(String),
    /// The name or path is too long or contains characters that IAM does not allow.
    #[error(
        "{0:?} is not a role name: IAM allows letters, digits and _+=,.@- up to 64 characters, after an optional path"
    )]
    BadName(String),
    /// A bare name without a base ARN to complete it.
    #[error(
        "role {0:?} is a name, but no base ARN is known to complete it: set --base-role-arn or \
         --auto-discover-base-arn"
    )]
    NoBase(String),
    /// The text does not have the form `arn:PARTITION:iam::ACCOUNT:role/`.
    #[error("{0:?} is not a base ARN: write arn:PARTITION:iam::ACCOUNT:role/")]
    NotABase(String),
}

/// A validated role ARN: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`.
///
/// Cloning is cheap. Equality compares the text.
#[derive(Clone)]
pub struct RoleArn {
    text: Arc<str>,
    /// Offset of the resource part (`[PATH/]NAME`).
    resource: u16,
    /// Offset of the name.
    name: u16,
}

impl RoleArn {
    /// Parses a role ARN.
    ///
    /// # Errors
    /// [`ArnError::NotARole`] or [`ArnError::BadName`].
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let shape = || ArnError::NotARole(shorten(text));
        if text.len() > MAX_ARN {
            return Err(shape());
        }
        let resource = base_length(text).ok_or_else(shape)?;
        let rest = text.get(resource..).ok_or_else(shape)?;
        check_resource(rest)?;
        let name = resource + rest.rfind('/').map_or(0, |slash| slash + 1);
        Ok(Self {
            text: text.into(),
            resource: u16::try_from(resource).map_err(|_| shape())?,
            name: u16::try_from(name).map_err(|_| shape())?,
        })
    }

    /// Returns the ARN as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the ARN as shared text.
    pub fn shared_text(&self) -> Arc<str> {
        self.text.clone()
    }

    /// Returns the partition: `aws`, `aws-cn`, `aws-us-gov`, …
    pub fn partition(&self) -> &str {
        self.text.split(':').nth(1).unwrap_or_default()
    }

    /// Returns the account ID, 12 digits.
    pub fn account(&self) -> &str {
        self.text.split(':').nth(4).unwrap_or_default()
    }

    /// Returns the name without its path. IAM keeps names unique within an account, regardless of
    /// path.
    pub fn name(&self) -> &str {
        self.text.get(usize::from(self.name)..).unwrap_or_default()
    }

    /// Returns path and name, the part after `role/`.
    pub fn resource(&self) -> &str {
        self.text
            .get(usize::from(self.resource)..)
            .unwrap_or_default()
    }
}

impl PartialEq for RoleArn {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
impl Eq for RoleArn {}
impl Hash for RoleArn {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}
impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
impl fmt::Debug for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RoleArn({})", self.text)
    }
}

/// The prefix of a bare role name: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseArn(Arc<str>);

impl BaseArn {
    /// Parses a base ARN. As in kube2iam, a missing trailing slash is added.
    ///
    /// # Errors
    /// [`ArnError::NotABase`].
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let error = || ArnError::NotABase(shorten(text));
        if text.len() > MAX_ARN {
            return Err(error());
        }
        let with_slash = if text.ends_with('/') {
            text.to_owned()
        } else {
            format!("{text}/")
        };
        let resource = base_length(&with_slash).ok_or_else(error)?;
        let path = with_slash.get(resource..).ok_or_else(error)?;
        if !path.is_empty() {
            let path = path.strip_suffix('/').ok_or_else(error)?;
            check_resource(path).map_err(|_| error())?;
        }
        Ok(Self(with_slash.into()))
    }

    /// Returns the base ARN of roles without a path in an account.
    ///
    /// # Errors
    /// [`ArnError::NotABase`] if either argument is malformed.
    pub fn from_account(partition: &str, account: &str) -> Result<Self, ArnError> {
        Self::parse(&format!("arn:{partition}:iam::{account}:role/"))
    }

    /// Returns the base ARN with its trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Resolves a requested role (a name, a name with a path or an ARN) to a role ARN.
///
/// # Errors
/// [`ArnError::NoBase`] for a name if `base` is `None`; otherwise as [`RoleArn::parse`].
pub fn resolve(request: &str, base: Option<&BaseArn>) -> Result<RoleArn, ArnError> {
    if is_arn(request) {
        return RoleArn::parse(request);
    }
    let name = request.strip_prefix('/').unwrap_or(request);
    check_resource(name)?;
    let base = base.ok_or_else(|| ArnError::NoBase(shorten(request)))?;
    RoleArn::parse(&format!("{}{name}", base.as_str()))
}

/// Returns the role name that the metadata endpoint lists: relative to the base ARN, or the whole
/// ARN if the role is outside it, as in kube2iam.
pub fn listed_name<'a>(role: &'a RoleArn, base: Option<&BaseArn>) -> &'a str {
    base.and_then(|base| role.as_str().strip_prefix(base.as_str()))
        .unwrap_or(role.as_str())
}

/// Returns true if a text is meant as an ARN rather than a name.
pub(crate) fn is_arn(text: &str) -> bool {
    text.get(..4)
        .is_some_and(|start| start.eq_ignore_ascii_case("arn:"))
}

/// Returns the length of the `arn:PARTITION:iam::ACCOUNT:role/` prefix of `text`.
fn base_length(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("arn:")?;
    let (partition, rest) = rest.split_once(':')?;
    let well_formed = partition.starts_with("aws")
        && partition.len() <= 32
        && partition
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let rest = rest.strip_prefix("iam::")?;
    let (account, rest) = rest.split_once(':')?;
    let numbered = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    let rest = rest.strip_prefix("role/")?;
    (well_formed && numbered).then(|| text.len() - rest.len())
}

/// Validates `[PATH/]NAME` against IAM's rules. IAM allows any printable ASCII character in paths;
/// here a path may contain only the characters of names, which are unambiguous in URLs and
/// patterns.
fn check_resource(resource: &str) -> Result<(), ArnError> {
    let fine = resource.len() <= 512 + MAX_NAME
        && resource
            .rsplit('/')
            .next()
            .is_some_and(|name| name.len() <= MAX_NAME)
        && resource.split('/').all(|segment| {
            !segment.is_empty()
                && segment != "."
                && segment != ".."
                && segment
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b))
        });
    fine.then_some(())
        .ok_or_else(|| ArnError::BadName(shorten(resource)))
}

/// Truncates an untrusted text for an error message.
pub(crate) fn shorten(text: &str) -> String {
    const MAX_SHOWN_CHARS: usize = 80;
    let mut kept: String = text.chars().take(MAX_SHOWN_CHARS).collect();
    if kept.len() < text.len() {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_arn_in_each_partition() {
        for partition in [
            "aws",
            "aws-cn",
            "aws-us-gov",
            "aws-eusc",
            "aws-iso",
            "aws-iso-b",
            "aws-iso-e",
            "aws-iso-f",
        ] {
            let text = format!("arn:{partition}:iam::123456789012:role/team/a/reader");
            let role = RoleArn::parse(&text).unwrap();
            assert_eq!(role.as_str(), text);
            assert_eq!(role.partition(), partition);
            assert_eq!(role.account(), "123456789012");
            assert_eq!(role.resource(), "team/a/reader");
            assert_eq!(role.name(), "reader");
        }
    }

    #[test]
    fn what_is_no_role_arn_is_refused() {
        for text in [
            "",
            "reader",
            "arn:",
            "arn:aws:iam::123456789012:role/",
            "arn:aws:iam::123456789012:role//x",
            "arn:aws:iam::123456789012:role/x/",
            "arn:aws:iam::123456789012:role/../x",
            "arn:aws:iam::123456789012:user/x",
            "arn:aws:iam::12345678901:role/x",
            "arn:aws:iam::12345678901a:role/x",
            "arn:aws:iam:us-east-1:123456789012:role/x",
            "arn:gcp:iam::123456789012:role/x",
            "ARN:aws:iam::123456789012:role/x",
            "arn:aws:iam::123456789012:role/x y",
            "arn:aws:iam::123456789012:role/x%2e",
            "arn:aws:iam::123456789012:role/é",
            &format!("arn:aws:iam::123456789012:role/{}", "x".repeat(65)),
        ] {
            assert!(RoleArn::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn arns_are_taken_up_to_the_longest_that_iam_makes() {
        let start = "arn:aws:iam::123456789012:role/";
        let is_role = |resource: &str| RoleArn::parse(&format!("{start}{resource}")).is_ok();
        let name = "n".repeat(64);
        // IAM counts a slash at both ends of the 512 characters of a path; without the first one,
        // 511 remain.
        let path = |length: usize| format!("{}/", "p".repeat(length - 1));
        assert!(is_role(&format!("{}{name}", path(512))));
        assert!(!is_role(&format!("{}{name}", path(513))));
        assert!(!is_role(&format!("{}n", path(576))));
        assert!(is_role(&format!("{}n", path(575))));
        let long = |length: usize| {
            let text = format!("{start}{}", "p/".repeat(length));
            text.get(..length).unwrap().to_owned()
        };
        // A longer text is never an ARN, whatever it contains.
        for (length, is_shape) in [(1024, true), (1025, false), (4000, false)] {
            let text = long(length);
            assert_eq!(
                !matches!(RoleArn::parse(&text), Err(ArnError::NotARole(_))),
                is_shape,
                "{length}"
            );
        }
        // A base ARN is a prefix of role ARNs, so the same limit applies.
        let base = |length: usize| {
            let text = format!("{start}{}", "p".repeat(length - start.len()));
            BaseArn::parse(&text).is_ok()
        };
        assert!(base(start.len() + 64) && !base(1025) && !base(4000));
    }

    #[test]
    fn names_are_completed_by_the_base() {
        let base = BaseArn::parse("arn:aws-cn:iam::123456789012:role").unwrap();
        let resolved = |request| resolve(request, Some(&base)).map(|role| role.to_string());
        assert_eq!(
            resolved("reader").unwrap(),
            "arn:aws-cn:iam::123456789012:role/reader"
        );
        assert_eq!(
            resolved("/team/reader").unwrap(),
            "arn:aws-cn:iam::123456789012:role/team/reader"
        );
        let other = "arn:aws:iam::210987654321:role/x";
        assert_eq!(resolved(other).unwrap(), other);
        assert!(resolved("../x").is_err());
        assert_eq!(
            resolve("reader", None),
            Err(ArnError::NoBase("reader".into()))
        );
    }

    #[test]
    fn roles_are_listed_relative_to_the_base() {
        let base = BaseArn::parse("arn:aws:iam::123456789012:role/team/").unwrap();
        let inside = RoleArn::parse("arn:aws:iam::123456789012:role/team/a/reader").unwrap();
        let outside = RoleArn::parse("arn:aws:iam::123456789012:role/reader").unwrap();
        assert_eq!(listed_name(&inside, Some(&base)), "a/reader");
        assert_eq!(listed_name(&outside, Some(&base)), outside.as_str());
        assert_eq!(listed_name(&outside, None), outside.as_str());
    }

    #[test]
    fn a_base_needs_its_whole_shape() {
        for text in [
            "",
            "arn:aws:iam::1:role/",
            "arn:aws:iam::123456789012:",
            "role/",
            "arn:aws:iam::123456789012:role//",
        ] {
            assert!(BaseArn::parse(text).is_err(), "{text}");
        }
    }
}
