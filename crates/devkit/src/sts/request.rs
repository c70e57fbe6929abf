//! A call's parameters, and AWS's rules for them.

use std::collections::HashMap;
use std::fmt;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::signature::Authorization;
use super::{MAX_DURATION, Refusal};

/// The only version of the STS API.
pub(super) const VERSION: &str = "2011-06-15";

const MAX_TAGS: usize = 50;
const MAX_POLICY_ARNS: usize = 10;
const MAX_POLICY: usize = 2048;
/// Maximum size of policy, policy ARNs and tags together.
const MAX_PACKED: usize = 4096;
const MIN_DURATION: u32 = 900;
const MIN_TOKEN_CHARS: usize = 4;
const MAX_TOKEN_CHARS: usize = 20_000;
/// Shown in an error in place of a token.
const HIDDEN: &str = "***";
/// Maximum number of list members to read, above the limit of any rule.
const MAX_MEMBERS: usize = 100;

/// A received call. Missing parameters are empty or `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StsCall {
    /// `AssumeRole`, `AssumeRoleWithWebIdentity`, `GetCallerIdentity` or any other action.
    pub action: String,
    /// Version of the API.
    pub version: String,
    /// ARN of the role.
    pub role_arn: String,
    /// `RoleSessionName`.
    pub session_name: String,
    /// `ExternalId`.
    pub external_id: Option<String>,
    /// `DurationSeconds`. An invalid number is 0.
    pub duration_seconds: Option<u32>,
    /// Session tags in the order sent.
    pub tags: Vec<(String, String)>,
    /// `TransitiveTagKeys` in the order sent.
    pub transitive_tag_keys: Vec<String>,
    /// `SourceIdentity`.
    pub source_identity: Option<String>,
    /// The inline session policy.
    pub policy: Option<String>,
    /// ARNs of managed session policies.
    pub policy_arns: Vec<String>,
    /// The token of `AssumeRoleWithWebIdentity`.
    pub web_identity_token: Option<IdentityToken>,
    /// The access key that signed the call.
    pub access_key_id: Option<String>,
    /// The Region that the call is signed for.
    pub region: Option<String>,
}

/// A token, which is not shown, since it is a credential.
#[derive(Clone, PartialEq, Eq)]
pub struct IdentityToken(String);

impl IdentityToken {
    /// Returns the token.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for IdentityToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityToken({} bytes)", self.0.len())
    }
}

impl StsCall {
    pub(super) fn parse(form: &[u8], headers: &HeaderMap) -> Self {
        let mut form: HashMap<String, String> = form_urlencoded::parse(form).into_owned().collect();
        let authorization = headers
            .get(AUTHORIZATION)
            .and_then(|value| Authorization::parse(value.to_str().ok()?).ok());
        Self {
            tags: members(|n| {
                let key = form.remove(&format!("Tags.member.{n}.Key"))?;
                let value = form.remove(&format!("Tags.member.{n}.Value"));
                Some((key, value.unwrap_or_default()))
            }),
            transitive_tag_keys: members(|n| form.remove(&format!("TransitiveTagKeys.member.{n}"))),
            policy_arns: members(|n| form.remove(&format!("PolicyArns.member.{n}.arn"))),
            action: form.remove("Action").unwrap_or_default(),
            version: form.remove("Version").unwrap_or_default(),
            role_arn: form.remove("RoleArn").unwrap_or_default(),
            session_name: form.remove("RoleSessionName").unwrap_or_default(),
            external_id: form.remove("ExternalId"),
            duration_seconds: form
                .remove("DurationSeconds")
                .map(|seconds| seconds.parse().unwrap_or_default()),
            source_identity: form.remove("SourceIdentity"),
            policy: form.remove("Policy"),
            web_identity_token: form.remove("WebIdentityToken").map(IdentityToken),
            access_key_id: authorization.as_ref().map(|it| it.access_key_id.into()),
            region: authorization.as_ref().map(|it| it.region.into()),
        }
    }

    /// Returns the call without the parameters that only `AssumeRole` has, which STS ignores.
    pub(super) fn without_role_parameters(self) -> Self {
        Self {
            external_id: None,
            tags: Vec::new(),
            transitive_tag_keys: Vec::new(),
            source_identity: None,
            ..self
        }
    }

    /// Validates the parameters. All violations are reported together.
    pub(super) fn validate(&self) -> Result<(), Refusal> {
        let mut wrong = Wrong::default();
        wrong.string("roleArn", Some(&self.role_arn), 20..=2048, None);
        wrong.string(
            "roleSessionName",
            Some(&self.session_name),
            2..=64,
            Some(NAME),
        );
        wrong.string(
            "externalId",
            self.external_id.as_ref(),
            2..=1224,
            Some(EXTERNAL_ID),
        );
        wrong.string(
            "sourceIdentity",
            self.source_identity.as_ref(),
            2..=64,
            Some(NAME),
        );
        wrong.string("policy", self.policy.as_ref(), 1..=MAX_POLICY, None);
        if let Some(token) = &self.web_identity_token {
            let count = token.0.chars().count();
            if count < MIN_TOKEN_CHARS {
                let rule = format!("have length greater than or equal to {MIN_TOKEN_CHARS}");
                wrong.member("webIdentityToken", HIDDEN, &rule);
            } else if count > MAX_TOKEN_CHARS {
                let rule = format!("have length less than or equal to {MAX_TOKEN_CHARS}");
                wrong.member("webIdentityToken", HIDDEN, &rule);
            }
        }
        if let Some(seconds) = self.duration_seconds {
            if seconds < MIN_DURATION {
                let rule = format!("have value greater than or equal to {MIN_DURATION}");
                wrong.member("durationSeconds", &seconds.to_string(), &rule);
            } else if seconds > MAX_DURATION {
                let rule = format!("have value less than or equal to {MAX_DURATION}");
                wrong.member("durationSeconds", &seconds.to_string(), &rule);
            }
        }
        wrong.count("tags", self.tags.len(), MAX_TAGS);
        wrong.count(
            "transitiveTagKeys",
            self.transitive_tag_keys.len(),
            MAX_TAGS,
        );
        wrong.count("policyArns", self.policy_arns.len(), MAX_POLICY_ARNS);
        for (n, (key, value)) in (1..).zip(&self.tags) {
            wrong.string(
                &format!("tags.{n}.member.key"),
                Some(key),
                1..=128,
                Some(TAG),
            );
            wrong.string(
                &format!("tags.{n}.member.value"),
                Some(value),
                0..=256,
                Some(TAG),
            );
        }
        wrong.refuse()?;
        self.validate_meaning()
    }

    /// Validates rules beyond the format of a single parameter.
    fn validate_meaning(&self) -> Result<(), Refusal> {
        let invalid = |message: String| Err(Refusal::new(400, "ValidationError", message));
        if !is_role_arn(&self.role_arn) {
            return invalid(format!("{} is invalid", self.role_arn));
        }
        let mut keys: Vec<_> = self
            .tags
            .iter()
            .map(|(key, _)| key.to_lowercase())
            .collect();
        keys.sort_unstable();
        if keys
            .windows(2)
            .any(|pair| matches!(pair, [one, other] if one == other))
        {
            return invalid(
                "Duplicate tag keys found. Please note that Tag keys are case insensitive.".into(),
            );
        }
        let missing = |key: &&String| keys.binary_search(&key.to_lowercase()).is_err();
        if let Some(key) = self.transitive_tag_keys.iter().find(missing) {
            return invalid(format!(
                "The transitive tag key {key} is not among the session tags."
            ));
        }
        let malformed = |policy: &String| {
            serde_json::from_str::<serde_json::Map<_, _>>(policy)
                .map_or(true, |policy| !policy.contains_key("Statement"))
        };
        if self.policy.as_ref().is_some_and(malformed) {
            let message = "The policy is not in the valid JSON format.";
            return Err(Refusal::new(400, "MalformedPolicyDocument", message));
        }
        Ok(())
    }

    /// Returns the percentage of the allowed size that the policy, the tags and inherited tags use,
    /// in the format of STS; `None` without any. The packing of STS is not documented.
    pub(super) fn packed_policy_size(&self, inherited: &[(String, String)]) -> Option<usize> {
        let tags: usize = self
            .tags
            .iter()
            .chain(inherited)
            .map(|(key, value)| key.len() + value.len())
            .sum();
        let policy = self.policy.as_ref().map_or(0, String::len);
        let packed = tags + policy + self.policy_arns.iter().map(String::len).sum::<usize>();
        (packed > 0).then(|| (packed * 100 / MAX_PACKED).max(1))
    }
}

/// Matches `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`.
fn is_role_arn(arn: &str) -> bool {
    match arn.split(':').collect::<Vec<_>>()[..] {
        ["arn", partition, "iam", "", account, resource] => {
            partition.starts_with("aws")
                && account.len() == 12
                && account.bytes().all(|byte| byte.is_ascii_digit())
                && resource
                    .strip_prefix("role/")
                    .and_then(|path| path.rsplit('/').next())
                    .is_some_and(|name| !name.is_empty())
        }
        _ => false,
    }
}

fn members<T>(member: impl FnMut(usize) -> Option<T>) -> Vec<T> {
    (1..=MAX_MEMBERS).map_while(member).collect()
}

/// The allowed characters of a parameter: AWS's pattern, and its implementation.
type Pattern = (&'static str, fn(char) -> bool);

const NAME: Pattern = (r"[\w+=,.@-]*", is_name);
const EXTERNAL_ID: Pattern = (r"[\w+=,.@:\/-]*", |c| is_name(c) || matches!(c, ':' | '/'));
const TAG: Pattern = (r"[\p{L}\p{Z}\p{N}_.:/=+\-@]*", |c| {
    c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c)
});

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_+=,.@-".contains(c)
}

/// The violated rules, in AWS's words.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn member(&mut self, name: &str, value: &str, rule: &str) {
        self.0.push(format!(
            "Value '{value}' at '{name}' failed to satisfy constraint: Member must {rule}"
        ));
    }

    fn string(
        &mut self,
        name: &str,
        value: Option<&String>,
        length: std::ops::RangeInclusive<usize>,
        pattern: Option<Pattern>,
    ) {
        let Some(value) = value else { return };
        let count = value.chars().count();
        if count < *length.start() {
            let rule = format!("have length greater than or equal to {}", length.start());
            self.member(name, value, &rule);
        } else if count > *length.end() {
            let rule = format!("have length less than or equal to {}", length.end());
            self.member(name, value, &rule);
        }
        if let Some((pattern, allowed)) = pattern
            && !value.chars().all(allowed)
        {
            self.member(
                name,
                value,
                &format!("satisfy regular expression pattern: {pattern}"),
            );
        }
    }

    fn count(&mut self, name: &str, count: usize, most: usize) {
        if count > most {
            let rule = format!("have length less than or equal to {most}");
            self.member(name, &format!("{count} members"), &rule);
        }
    }

    fn refuse(self) -> Result<(), Refusal> {
        let plural = match self.0.len() {
            0 => return Ok(()),
            1 => "",
            _ => "s",
        };
        let message = format!(
            "{} validation error{plural} detected: {}",
            self.0.len(),
            self.0.join("; ")
        );
        Err(Refusal::new(400, "ValidationError", message))
    }
}
