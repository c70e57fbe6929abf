//! Trust policies of roles, as far as these tests need them. A policy that contains anything else
//! is refused when it is set, so that no test passes because a condition was not evaluated.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// The actions that a statement can name, in lower case, since IAM ignores the case.
const ACTIONS: [&str; 4] = [
    "sts:assumerole",
    "sts:assumerolewithwebidentity",
    "sts:tagsession",
    "sts:setsourceidentity",
];

/// The reason why a trust policy cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTrustPolicy {
    /// The text is not a policy document, or contains an element that is not supported.
    #[error("the trust policy is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// An action is not supported. Wildcards are not.
    #[error("the action {0} is not supported")]
    Action(String),
    /// A condition operator is not supported.
    #[error("the condition operator {0} is not supported; use StringEquals or StringLike")]
    Operator(String),
    /// A condition key is not supported.
    #[error("the condition key {0} is not supported")]
    Key(String),
}

/// A valid trust policy.
#[derive(Debug)]
pub(super) struct TrustPolicy {
    statements: Vec<Statement>,
}

/// The principal of a request.
#[derive(Debug)]
pub(super) enum Principal<'a> {
    /// The ARN of an OIDC provider.
    Federated(&'a str),
    /// The ARN of a user, or of a role without its path.
    Aws(&'a str),
}

/// A request to evaluate.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) principal: Principal<'a>,
    /// The values of condition keys, by key in lower case.
    pub(super) context: HashMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Document {
    #[serde(rename = "Version")]
    _version: Option<IgnoredAny>,
    #[serde(rename = "Id")]
    _id: Option<IgnoredAny>,
    statement: OneOrMany<Statement>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Statement {
    #[serde(rename = "Sid")]
    _sid: Option<IgnoredAny>,
    effect: Effect,
    principal: Principals,
    action: OneOrMany<String>,
    #[serde(default)]
    condition: HashMap<String, HashMap<String, OneOrMany<String>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Principals {
    #[serde(default)]
    federated: OneOrMany<String>,
    #[serde(rename = "AWS", default)]
    aws: OneOrMany<String>,
    /// Services of AWS, which never call this service.
    #[serde(rename = "Service", default)]
    _service: OneOrMany<String>,
}

/// A list that policies may write as its only item.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T> OneOrMany<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Self::One(item) => std::slice::from_ref(item),
            Self::Many(items) => items,
        }
    }
}

impl TrustPolicy {
    pub(super) fn parse(text: &str) -> Result<Self, InvalidTrustPolicy> {
        // An error of the whole document would only say that no variant matches.
        let mut document: Value = serde_json::from_str(text)?;
        if let Some(statement @ Value::Object(_)) = document.get_mut("Statement") {
            *statement = Value::Array(vec![statement.take()]);
        }
        let document: Document = serde_json::from_value(document)?;
        let statements = match document.statement {
            OneOrMany::One(statement) => vec![statement],
            OneOrMany::Many(statements) => statements,
        };
        statements.iter().try_for_each(Statement::validate)?;
        Ok(Self { statements })
    }

    /// Returns `true` if a statement allows the action and none denies it.
    pub(super) fn allows(&self, action: &str, request: &Request<'_>) -> bool {
        let mut matching = self
            .statements
            .iter()
            .filter(|statement| statement.matches(action, request))
            .map(|statement| statement.effect)
            .peekable();
        matching.peek().is_some() && matching.all(|effect| effect == Effect::Allow)
    }
}

impl Statement {
    fn validate(&self) -> Result<(), InvalidTrustPolicy> {
        for action in self.action.as_slice() {
            if !ACTIONS
                .iter()
                .any(|known| known.eq_ignore_ascii_case(action))
            {
                return Err(InvalidTrustPolicy::Action(action.clone()));
            }
        }
        for (operator, keys) in &self.condition {
            if operator != "StringEquals" && operator != "StringLike" {
                return Err(InvalidTrustPolicy::Operator(operator.clone()));
            }
            if let Some(key) = keys.keys().find(|key| !is_supported(key)) {
                return Err(InvalidTrustPolicy::Key(key.clone()));
            }
        }
        Ok(())
    }

    fn matches(&self, action: &str, request: &Request<'_>) -> bool {
        let actions = self.action.as_slice();
        actions
            .iter()
            .any(|named| named.eq_ignore_ascii_case(action))
            && self.principal.contains(&request.principal)
            && self.condition.iter().all(|(operator, keys)| {
                keys.iter().all(|(key, patterns)| {
                    let value = request.context.get(&key.to_ascii_lowercase());
                    value.is_some_and(|value| {
                        patterns
                            .as_slice()
                            .iter()
                            .any(|pattern| match operator.as_str() {
                                "StringLike" => is_like(pattern, value),
                                _ => pattern == value,
                            })
                    })
                })
            })
    }
}

impl Principals {
    fn contains(&self, principal: &Principal<'_>) -> bool {
        match *principal {
            Principal::Federated(arn) => self.federated.as_slice().iter().any(|named| named == arn),
            Principal::Aws(arn) => self.aws.as_slice().iter().any(|named| {
                let account = arn.split(':').nth(4).unwrap_or_default();
                // The ARN of a session has no path.
                let without_path = match named.split_once(":role/") {
                    Some((account, role)) => {
                        let name = role.rsplit('/').next().unwrap_or_default();
                        format!("{account}:role/{name}")
                    }
                    None => named.clone(),
                };
                named == "*"
                    || named == account
                    || (named.ends_with(":root") && named.split(':').nth(4) == Some(account))
                    || without_path == arn
            }),
        }
    }
}

/// Returns `true` for the keys that requests have.
fn is_supported(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let of_provider = match key.rsplit_once(':') {
        Some((provider, claim)) => provider.contains('.') && matches!(claim, "aud" | "sub"),
        None => false,
    };
    of_provider || key == "sts:externalid" || key.starts_with("aws:requesttag/")
}

/// Matches `*` (any text) and `?` (any character), as the operator StringLike does.
fn is_like(pattern: &str, value: &str) -> bool {
    let (mut pattern, mut value) = (pattern.chars(), value.chars());
    loop {
        match pattern.next() {
            None => return value.next().is_none(),
            Some('*') => {
                let rest = pattern.as_str();
                return loop {
                    if is_like(rest, value.as_str()) {
                        break true;
                    }
                    if value.next().is_none() {
                        break false;
                    }
                };
            }
            Some('?') if value.next().is_some() => {}
            Some(wanted) if wanted != '?' && value.next() == Some(wanted) => {}
            Some(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROVIDER: &str = "arn:aws:iam::123456789012:oidc-provider/oidc.example.com/a";

    fn policy(condition: &str) -> String {
        format!(
            r#"{{"Version": "2012-10-17", "Statement": [{{"Effect": "Allow",
                "Principal": {{"Federated": "{PROVIDER}"}},
                "Action": "sts:AssumeRoleWithWebIdentity", "Condition": {condition}}}]}}"#
        )
    }

    fn allows(policy: &str, subject: &str) -> bool {
        let request = Request {
            principal: Principal::Federated(PROVIDER),
            context: HashMap::from([("oidc.example.com/a:sub".to_owned(), subject.to_owned())]),
        };
        TrustPolicy::parse(policy)
            .unwrap()
            .allows("sts:AssumeRoleWithWebIdentity", &request)
    }

    #[test]
    fn every_condition_must_match() {
        let equals = policy(r#"{"StringEquals": {"oidc.example.com/a:SUB": ["x", "y"]}}"#);
        assert!(allows(&equals, "y"));
        assert!(!allows(&equals, "Y"));
        let like = r#"{"StringLike": {"oidc.example.com/a:sub": "system:*:app-?"}}"#;
        assert!(allows(&policy(like), "system:serviceaccount:x:app-1"));
        assert!(!allows(&policy(like), "system:serviceaccount:x:app-12"));
        // A key that the request lacks does not match.
        let absent = r#"{"StringLike": {"oidc.example.com/b:sub": "*"}}"#;
        assert!(!allows(&policy(absent), "x"));
    }

    #[test]
    fn a_denial_prevails() {
        let denied = policy("{}").replace(
            "}]}",
            &format!(
                r#"}}, {{"Effect": "Deny", "Principal": {{"Federated": "{PROVIDER}"}},
                "Action": "sts:AssumeRoleWithWebIdentity",
                "Condition": {{"StringEquals": {{"oidc.example.com/a:sub": "x"}}}}}}]}}"#
            ),
        );
        assert!(allows(&denied, "y"));
        assert!(!allows(&denied, "x"));
    }

    #[test]
    fn what_is_not_evaluated_is_refused() {
        let plain = policy("{}");
        for (from, to) in [
            (
                r#""Condition": {}"#,
                r#""Condition": {"StringNotEquals": {}}"#,
            ),
            (
                r#""Condition": {}"#,
                r#""Condition": {"StringLike": {"aws:SourceIp": "*"}}"#,
            ),
            (
                r#""Condition": {}"#,
                r#""NotAction": "sts:GetFederationToken""#,
            ),
            ("sts:AssumeRoleWithWebIdentity", "sts:*"),
            ("Federated", "CanonicalUser"),
        ] {
            let changed = plain.replace(from, to);
            assert_ne!(changed, plain);
            assert!(TrustPolicy::parse(&changed).is_err(), "{changed}");
        }
    }
}
