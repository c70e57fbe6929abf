//! AdmissionReviews (`admission.k8s.io/v1`) as the API server sends them.
//!
//! The objects in them stay raw text until somebody has to look at them.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::text::shown;

/// Most bytes of a review: two objects as large as the API server takes (3 MiB), and the rest.
pub const MAX_REVIEW: usize = 8 * 1024 * 1024;
/// Most bytes of a request's UID, which the API server makes and the answer repeats.
const MAX_UID: usize = 128;
/// Most characters of a parser's complaint, which may repeat what it read.
const SHOWN: usize = 200;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// Why a body is no review that can be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// Longer than [`MAX_REVIEW`].
    #[error("the body has {0} bytes: a review has at most {MAX_REVIEW}")]
    TooLarge(usize),
    /// Not JSON, or nested too deeply.
    #[error("the body is not the JSON of an AdmissionReview: {0}")]
    NotJson(String),
    /// Another kind or version.
    #[error("the body is {0}: only {KIND} of {API_VERSION} is understood")]
    NotAReview(String),
    /// A review without request, such as an answer.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    /// The request has no usable UID, so that no answer can be told to belong to it.
    #[error("the AdmissionReview's request has no uid")]
    NoUid,
    /// The request cannot be read.
    #[error("the AdmissionReview's request cannot be read: {why}")]
    Request {
        /// Its UID, by which it can be refused.
        uid: String,
        /// What is wrong.
        why: String,
    },
}

impl ReviewError {
    /// The UID of the request, where it is known: then it can be answered with a denial, see
    /// [`crate::outcome::refusal`].
    pub fn uid(&self) -> Option<&str> {
        match self {
            Self::Request { uid, .. } => Some(uid),
            _ => None,
        }
    }
}

/// What is to be done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// It is made.
    Create,
    /// It is changed.
    Update,
    /// It is deleted.
    Delete,
    /// Something is connected to it, such as a terminal.
    Connect,
}

impl Operation {
    /// As the API server writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// The kind of the object that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Kind<'a> {
    /// The API group; empty for the core group.
    #[serde(borrow, default)]
    pub group: Cow<'a, str>,
    /// The version.
    #[serde(borrow, default)]
    pub version: Cow<'a, str>,
    /// The kind.
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
}

/// Who asks, as the API server authenticated them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct User<'a> {
    /// The name.
    #[serde(borrow, default, rename = "username")]
    pub name: Cow<'a, str>,
    /// The groups.
    #[serde(default, deserialize_with = "nullable")]
    pub groups: Vec<String>,
}

impl User<'_> {
    /// Whether the user is in `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|known| known == group)
    }
}

/// A review to be judged. Borrows from the body.
#[derive(Debug, Clone)]
pub struct Review<'a> {
    body: &'a str,
    request: Request<'a>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
    #[serde(borrow)]
    kind: Kind<'a>,
    #[serde(borrow, default)]
    sub_resource: Cow<'a, str>,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    operation: Operation,
    #[serde(borrow, default)]
    user_info: User<'a>,
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
    #[serde(borrow, default)]
    old_object: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    request: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OnlyUid<'a> {
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
}

impl<'a> Review<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// [`ReviewError`]; where [`ReviewError::uid`] is known the request can be refused by it, and
    /// otherwise nothing but an error can be answered.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReviewError> {
        if body.len() > MAX_REVIEW {
            return Err(ReviewError::TooLarge(body.len()));
        }
        let not_json = |why: &dyn std::fmt::Display| ReviewError::NotJson(complaint(why));
        let body = std::str::from_utf8(body).map_err(|error| not_json(&error))?;
        // Where a list would be taken for a structure's fields in order.
        if !body.trim_ascii_start().starts_with('{') {
            return Err(not_json(&"it is no object"));
        }
        let envelope: Envelope<'a> =
            serde_json::from_str(body).map_err(|error| not_json(&error))?;
        if envelope.api_version != API_VERSION || envelope.kind != KIND {
            let what = format!("{:?} of {:?}", envelope.kind, envelope.api_version);
            return Err(ReviewError::NotAReview(shown(&what, SHOWN)));
        }
        let request = present(envelope.request).ok_or(ReviewError::NoRequest)?;
        if !request.get().starts_with('{') {
            return Err(ReviewError::NoRequest);
        }
        let only: OnlyUid<'_> =
            serde_json::from_str(request.get()).map_err(|error| not_json(&error))?;
        if only.uid.is_empty() || only.uid.len() > MAX_UID {
            return Err(ReviewError::NoUid);
        }
        let mut request: Request<'a> =
            serde_json::from_str(request.get()).map_err(|error| ReviewError::Request {
                uid: only.uid.into_owned(),
                why: complaint(&error),
            })?;
        request.object = present(request.object);
        request.old_object = present(request.old_object);
        Ok(Self { body, request })
    }

    /// The UID, which the answer repeats.
    pub fn uid(&self) -> &str {
        &self.request.uid
    }

    /// The kind of the object that was sent.
    pub fn kind(&self) -> &Kind<'a> {
        &self.request.kind
    }

    /// The subresource, such as `status`; empty for the object itself.
    pub fn subresource(&self) -> &str {
        &self.request.sub_resource
    }

    /// The object's name; empty where it is still to be made up.
    pub fn name(&self) -> &str {
        &self.request.name
    }

    /// The namespace; empty for objects of the cluster.
    pub fn namespace(&self) -> &str {
        &self.request.namespace
    }

    /// What is to be done.
    pub fn operation(&self) -> Operation {
        self.request.operation
    }

    /// Who asks.
    pub fn user(&self) -> &User<'a> {
        &self.request.user_info
    }

    /// The object as it would be; none at a deletion.
    pub fn object(&self) -> Option<&'a RawValue> {
        self.request.object
    }

    /// The object as it is; none at a creation.
    pub fn old_object(&self) -> Option<&'a RawValue> {
        self.request.old_object
    }

    /// The whole review, as it came.
    pub fn body(&self) -> &'a str {
        self.body
    }
}

fn present(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| raw.get() != "null")
}

fn complaint(error: &dyn std::fmt::Display) -> String {
    shown(&error.to_string(), SHOWN)
}

fn nullable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
