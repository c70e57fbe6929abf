//! The access keys that STS accepts: configured ones, and those of sessions that it issued.

use std::collections::HashMap;
use std::fmt;

use http::header::{AUTHORIZATION, HeaderName};
use http::request::Parts;
use jiff::Timestamp;

use super::access_key::AccessKey;
use super::signature::Authorization;
use super::xml::Element;
use super::{Refusal, StsCall};
use crate::ids;
use crate::recent::Recent;

const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// The caller of a request.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) arn: String,
    /// Session tags that are inherited by sessions that this one requests.
    pub(super) transitive_tags: Vec<(String, String)>,
}

impl Caller {
    /// Returns whether the caller has a role's session, so that the call is role chaining.
    pub(super) fn is_role(&self) -> bool {
        self.arn.contains(":assumed-role/")
    }

    pub(super) fn named(arn: String) -> Self {
        Self {
            arn,
            transitive_tags: Vec::new(),
        }
    }

    /// Returns the principal in a trust policy: the user, or the role without its path, which the
    /// ARN of a session does not contain.
    pub(super) fn principal(&self) -> String {
        match self.arn.split(':').collect::<Vec<_>>()[..] {
            ["arn", partition, "sts", region, account, session] => {
                let role = session.split('/').nth(1).unwrap_or_default();
                format!("arn:{partition}:iam:{region}:{account}:role/{role}")
            }
            _ => self.arn.clone(),
        }
    }

    /// Returns the response to `GetCallerIdentity`.
    pub(super) fn describe(&self) -> Vec<Element> {
        let account = self.arn.split(':').nth(4).unwrap_or_default();
        let resource = self.arn.split(':').nth(5).unwrap_or_default();
        let user_id = match resource.split('/').collect::<Vec<_>>()[..] {
            ["assumed-role", role, session] => assumed_role_id(account, role, session),
            _ => ids::unique_id("AIDA", &self.arn),
        };
        vec![
            Element::text("Arn", &self.arn),
            Element::text("UserId", user_id),
            Element::text("Account", account),
        ]
    }
}

fn assumed_role_id(account: &str, role: &str, session: &str) -> String {
    format!(
        "{}:{session}",
        ids::unique_id("AROA", &format!("{account}/{role}"))
    )
}

#[derive(Clone)]
struct Known {
    key: AccessKey,
    transitive_tags: Vec<(String, String)>,
    expiration: Option<Timestamp>,
}

impl Known {
    fn caller(&self) -> Caller {
        Caller {
            arn: self.key.caller_arn.clone(),
            transitive_tags: self.transitive_tags.clone(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Keys {
    checked: bool,
    default_caller: Caller,
    known: HashMap<String, Known>,
    /// The keys of sessions in order of issue, to remove the oldest.
    issued: Recent<String>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

impl Keys {
    pub(super) fn new(keys: Option<HashMap<String, AccessKey>>, default_caller: String) -> Self {
        let checked = keys.is_some();
        let known = keys.unwrap_or_default().into_iter();
        Self {
            checked,
            default_caller: Caller::named(default_caller),
            known: known
                .map(|(id, key)| {
                    (
                        id,
                        Known {
                            key,
                            transitive_tags: Vec::new(),
                            expiration: None,
                        },
                    )
                })
                .collect(),
            issued: Recent::default(),
        }
    }

    /// Returns the caller of a request, if its signature is valid.
    pub(super) fn authenticate(
        &self,
        parts: &Parts,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Caller, Refusal> {
        let header = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        if !self.checked {
            let known = header
                .and_then(|header| Authorization::parse(header).ok())
                .and_then(|authorization| self.known.get(authorization.access_key_id));
            return Ok(known
                .map(Known::caller)
                .unwrap_or_else(|| self.default_caller.clone()));
        }
        let header = header.ok_or_else(|| {
            let message = "Request is missing Authentication Token";
            Refusal::new(403, "MissingAuthenticationToken", message)
        })?;
        let authorization = Authorization::parse(header)?;
        let invalid = || {
            let message = "The security token included in the request is invalid.";
            Refusal::new(403, "InvalidClientTokenId", message)
        };
        let known = self
            .known
            .get(authorization.access_key_id)
            .ok_or_else(invalid)?;
        let token = parts
            .headers
            .get(SECURITY_TOKEN)
            .map(|value| value.as_bytes());
        if token != known.key.session_token.as_deref().map(str::as_bytes) {
            return Err(invalid());
        }
        authorization.verify(&known.key, parts, body, now)?;
        if known.expiration.is_some_and(|expiration| expiration <= now) {
            let message = "The security token included in the request is expired";
            return Err(Refusal::new(403, "ExpiredToken", message));
        }
        Ok(known.caller())
    }

    /// Issues a session, and returns the response to `AssumeRole`.
    pub(super) fn issue(
        &mut self,
        call: &StsCall,
        caller: &Caller,
        expiration: Timestamp,
    ) -> Vec<Element> {
        let mut arn = call.role_arn.split(':').skip(1);
        let partition = arn.next().unwrap_or_default();
        let account = arn.nth(2).unwrap_or_default();
        let role = call.role_arn.rsplit('/').next().unwrap_or_default();
        let session = &call.session_name;
        let caller_arn = format!("arn:{partition}:sts::{account}:assumed-role/{role}/{session}");
        let id = ids::access_key_id();
        let secret = ids::secret_access_key();
        let token = ids::session_token();
        let mut answer = vec![
            Element::group(
                "AssumedRoleUser",
                vec![
                    Element::text("AssumedRoleId", assumed_role_id(account, role, session)),
                    Element::text("Arn", &caller_arn),
                ],
            ),
            Element::group(
                "Credentials",
                vec![
                    Element::text("AccessKeyId", &id),
                    Element::text("SecretAccessKey", &secret),
                    Element::text("SessionToken", &token),
                    Element::text("Expiration", format!("{expiration:.0}")),
                ],
            ),
        ];
        if let Some(percent) = call.packed_policy_size(&caller.transitive_tags) {
            answer.push(Element::text("PackedPolicySize", percent.to_string()));
        }
        if let Some(source) = &call.source_identity {
            answer.push(Element::text("SourceIdentity", source));
        }
        let key = AccessKey {
            secret_access_key: secret,
            session_token: Some(token),
            caller_arn,
        };
        let stays = |key: &String| call.transitive_tag_keys.contains(key);
        let transitive_tags = call.tags.iter().filter(|(key, _)| stays(key));
        let inherited = caller.transitive_tags.iter();
        self.known.insert(
            id.clone(),
            Known {
                key,
                transitive_tags: inherited.chain(transitive_tags).cloned().collect(),
                expiration: Some(expiration),
            },
        );
        if let Some(oldest) = self.issued.push(id) {
            self.known.remove(&oldest);
        }
        answer
    }
}
