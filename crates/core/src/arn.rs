//! Role ARNs, and the base ARN that turns a role's name into one.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Longest ARN that IAM makes: a 512-character path and a 64-character name, with room to spare.
const MAX_ARN: usize = 1024;
const MAX_NAME: usize = 64;

/// Why a text is no role ARN, or no role name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArnError {
    /// Not of the shape `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`.
    #[error("{0:?} is not a role ARN: write arn:PARTITION:iam::ACCOUNT:role/NAME")]
    NotARole(String),
    /// The name or path holds characters that IAM does not allow, or is too long.
    #[error(
        "{0:?} is not a role name: IAM allows letters, digits and _+=,.@- up to 64 characters, after an optional path"
    )]
    BadName(String),
    /// A bare name was given and there is no base ARN to complete it.
    #[error(
        "role {0:?} is a name, and no base ARN is known to complete it: set --base-role-arn or --auto-discover-base-arn"
    )]
    NoBase(String),
    /// Not of the shape `arn:PARTITION:iam::ACCOUNT:role/`.
    #[error("{0:?} is not a base ARN: write arn:PARTITION:iam::ACCOUNT:role/")]
    NotABase(String),
}

/// The whole ARN of an IAM role, checked: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`.
///
/// Cheap to clone. Equality is that of the text.
#[derive(Clone)]
pub struct RoleArn {
    text: Arc<str>,
    /// Where the resource part (`[PATH/]NAME`) starts.
    resource: u16,
    /// Where the name starts.
    name: u16,
}

impl RoleArn {
    /// Parses a whole role ARN.
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

    /// The whole ARN.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The partition: `aws`, `aws-cn`, `aws-us-gov`, …
    pub fn partition(&self) -> &str {
        self.text.split(':').nth(1).unwrap_or_default()
    }

    /// The account, 12 digits.
    pub fn account(&self) -> &str {
        self.text.split(':').nth(4).unwrap_or_default()
    }

    /// The name without path, unique in its account whatever the path.
    pub fn name(&self) -> &str {
        self.text.get(usize::from(self.name)..).unwrap_or_default()
    }

    /// Path and name, as after `role/`.
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

/// What precedes a bare role name: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseArn(Arc<str>);

impl BaseArn {
    /// Parses a base ARN; a missing slash at the end is added, as kube2iam does.
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

    /// The base of roles without path in `account` of `partition`.
    ///
    /// # Errors
    /// [`ArnError::NotABase`] when either is malformed.
    pub fn of_account(partition: &str, account: &str) -> Result<Self, ArnError> {
        Self::parse(&format!("arn:{partition}:iam::{account}:role/"))
    }

    /// The base ARN, with its slash at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Turns what a pod wishes for (name, name with path or whole ARN) into a role ARN.
///
/// # Errors
/// [`ArnError::NoBase`] for a name where `base` is `None`, else as [`RoleArn::parse`].
pub fn resolve(wish: &str, base: Option<&BaseArn>) -> Result<RoleArn, ArnError> {
    if is_arn(wish) {
        return RoleArn::parse(wish);
    }
    let name = wish.strip_prefix('/').unwrap_or(wish);
    check_resource(name)?;
    let base = base.ok_or_else(|| ArnError::NoBase(shorten(wish)))?;
    RoleArn::parse(&format!("{}{name}", base.as_str()))
}

/// The name under which a pod is told its role: relative to the base ARN, or the whole ARN where
/// the role is outside of it (as kube2iam does).
pub fn listed_name<'a>(role: &'a RoleArn, base: Option<&BaseArn>) -> &'a str {
    base.and_then(|base| role.as_str().strip_prefix(base.as_str()))
        .unwrap_or(role.as_str())
}

/// Whether a text is meant as an ARN and not as a name.
pub(crate) fn is_arn(text: &str) -> bool {
    text.get(..4)
        .is_some_and(|start| start.eq_ignore_ascii_case("arn:"))
}

/// The length of `arn:PARTITION:iam::ACCOUNT:role/` at the start of `text`.
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

/// Checks `[PATH/]NAME` against IAM's rules. Paths may hold any printable ASCII character in IAM;
/// here they are held to those of names, which keeps them unambiguous in URLs and patterns.
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

/// The start of a text that somebody else chose, short enough for an error message.
pub(crate) fn shorten(text: &str) -> String {
    const KEPT: usize = 80;
    let mut kept: String = text.chars().take(KEPT).collect();
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
        // IAM's 512 characters of a path have a slash at both ends; here they have 511 before the name.
        let path = |length: usize| format!("{}/", "p".repeat(length - 1));
        assert!(is_role(&format!("{}{name}", path(512))));
        assert!(!is_role(&format!("{}{name}", path(513))));
        assert!(!is_role(&format!("{}n", path(576))));
        assert!(is_role(&format!("{}n", path(575))));
        let long = |length: usize| {
            let text = format!("{start}{}", "p/".repeat(length));
            text.get(..length).unwrap().to_owned()
        };
        // Longer text is never an ARN, whatever it contains.
        for (length, is_shape) in [(1024, true), (1025, false), (4000, false)] {
            let text = long(length);
            assert_eq!(
                !matches!(RoleArn::parse(&text), Err(ArnError::NotARole(_))),
                is_shape,
                "{length}"
            );
        }
        // A base is completed by names, so it is bounded alike.
        let base = |length: usize| {
            let text = format!("{start}{}", "p".repeat(length - start.len()));
            BaseArn::parse(&text).is_ok()
        };
        assert!(base(start.len() + 64) && !base(1025) && !base(4000));
    }

    #[test]
    fn names_are_completed_by_the_base() {
        let base = BaseArn::parse("arn:aws-cn:iam::123456789012:role").unwrap();
        let resolved = |wish| resolve(wish, Some(&base)).map(|role| role.to_string());
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
