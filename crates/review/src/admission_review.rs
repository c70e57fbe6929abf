//! AdmissionReviews (`admission.k8s.io/v1` and `v1beta1`) as sent by the API server.
//!
//! Their objects are not parsed until they are needed.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use rolegate_core::text::bounded;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Maximum size of a review, in bytes: two objects of the API server's maximum (3 MiB), and the
/// rest.
pub const MAX_REVIEW_BYTES: usize = 8 * 1024 * 1024;
/// Maximum size of a request's UID, which the API server generates and the response repeats, in
/// bytes.
const MAX_UID_BYTES: usize = 128;
/// Maximum number of characters of a parser error, which may quote its input.
const MAX_SHOWN_CHARS: usize = 200;

pub(crate) const KIND: &str = "AdmissionReview";
const V1: &str = "admission.k8s.io/v1";

/// A version of the AdmissionReview. The response must repeat the request's. The fields that this
/// program uses are the same in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReviewVersion {
    /// `admission.k8s.io/v1`.
    #[default]
    V1,
    /// `admission.k8s.io/v1beta1`, which registrations of EKS's webhook ask for.
    V1Beta1,
}

impl ReviewVersion {
    /// Returns the `apiVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => V1,
            Self::V1Beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

/// The reason why a body is not a usable review.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The body is longer than [`MAX_REVIEW_BYTES`].
    #[error("the body has {0} bytes, more than the maximum of {MAX_REVIEW_BYTES}")]
    TooLarge(usize),
    /// The body is not JSON, or nested too deeply.
    #[error("the body is not an AdmissionReview in JSON: {0}")]
    NotJson(String),
    /// The body has another kind or version.
    #[error("the body is {0}, not {KIND} of {V1}")]
    NotAReview(String),
    /// The review has no request, such as a response.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    /// The request has no usable UID, so a response could not be matched to it.
    #[error("the AdmissionReview's request has no uid")]
    NoUid,
    /// The request cannot be parsed.
    #[error("cannot parse the AdmissionReview's request: {why}")]
    Request {
        /// The version of the review, for the denial.
        version: ReviewVersion,
        /// Its UID, for the denial.
        uid: String,
        /// The reason.
        why: String,
    },
}

impl ReviewError {
    /// Returns the review's version and the request's UID, if known, for a denial by [`crate::outcome::refusal`].
    pub fn uid(&self) -> Option<(ReviewVersion, &str)> {
        match self {
            Self::Request { version, uid, .. } => Some((*version, uid)),
            _ => None,
        }
    }
}

/// The operation on the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// The object is created.
    Create,
    /// The object is updated.
    Update,
    /// The object is deleted.
    Delete,
    /// A connection to the object is opened, such as a terminal.
    Connect,
}

impl Operation {
    /// Returns the API server's name of the operation.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// The kind of the submitted object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Kind<'a> {
    /// The API group. Empty for the core group.
    #[serde(borrow, default)]
    pub group: Cow<'a, str>,
    /// The version.
    #[serde(borrow, default)]
    pub version: Cow<'a, str>,
    /// The kind.
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
}

/// The authenticated user of the request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct User<'a> {
    /// The user's name.
    #[serde(borrow, default, rename = "username")]
    pub name: Cow<'a, str>,
    /// The user's groups.
    #[serde(default, deserialize_with = "nullable")]
    pub groups: Vec<String>,
}

impl User<'_> {
    /// Returns `true` if the user is in `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|known| known == group)
    }
}

/// A parsed review, which borrows from the body.
#[derive(Debug, Clone)]
pub struct Review<'a> {
    body: &'a str,
    version: ReviewVersion,
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
struct Envelope<'a, R> {
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(default = "Option::default")]
    request: Option<R>,
}

/// A struct that must be a JSON object. serde would accept a list with the fields in order.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

#[derive(Deserialize)]
struct OnlyUid<'a> {
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
}

impl<'a> Review<'a> {
    /// Parses a body.
    ///
    /// # Errors
    /// Returns [`ReviewError`]. If [`ReviewError::uid`] is known, the request can be denied;
    /// otherwise the response can only be an error.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReviewError> {
        if body.len() > MAX_REVIEW_BYTES {
            return Err(ReviewError::TooLarge(body.len()));
        }
        let not_json = |why: &dyn fmt::Display| ReviewError::NotJson(complaint(why));
        let body = std::str::from_utf8(body).map_err(|error| not_json(&error))?;
        // serde would accept a list with the fields in order.
        if !body.trim_ascii_start().starts_with('{') {
            return Err(not_json(&"it is not an object"));
        }
        let Ok(Envelope {
            api_version,
            kind,
            request: Some(Object(request)),
        }) = serde_json::from_str::<Envelope<'a, Object<Request<'a>>>>(body)
        else {
            return Err(Self::violation(body));
        };
        let version = version_of(&api_version, &kind)?;
        check_uid(&request.uid)?;
        Ok(Self {
            body,
            version,
            request: Request {
                object: present(request.object),
                old_object: present(request.old_object),
                ..request
            },
        })
    }

    /// Finds the error in a body by parsing it part by part.
    fn violation(body: &str) -> ReviewError {
        let not_json = |error| ReviewError::NotJson(complaint(&error));
        let find = || {
            let envelope: Envelope<'_, &RawValue> = serde_json::from_str(body).map_err(not_json)?;
            let version = version_of(&envelope.api_version, &envelope.kind)?;
            let request = present(envelope.request).ok_or(ReviewError::NoRequest)?;
            if !request.get().starts_with('{') {
                return Err(ReviewError::NoRequest);
            }
            let only: OnlyUid<'_> = serde_json::from_str(request.get()).map_err(not_json)?;
            check_uid(&only.uid)?;
            match serde_json::from_str::<Request<'_>>(request.get()) {
                Ok(_) => Ok(()),
                Err(error) => Err(ReviewError::Request {
                    version,
                    uid: only.uid.into_owned(),
                    why: complaint(&error),
                }),
            }
        };
        // The parts can be parsed, but the whole is one level too deep.
        let unknown = || ReviewError::NotJson("it is nested too deeply".into());
        find().err().unwrap_or_else(unknown)
    }

    /// Returns the version, which the response repeats.
    pub fn version(&self) -> ReviewVersion {
        self.version
    }

    /// Returns the UID, which the response repeats.
    pub fn uid(&self) -> &str {
        &self.request.uid
    }

    /// Returns the kind of the submitted object.
    pub fn kind(&self) -> &Kind<'a> {
        &self.request.kind
    }

    /// Returns the subresource, such as `status`. Empty for the object itself.
    pub fn subresource(&self) -> &str {
        &self.request.sub_resource
    }

    /// Returns the object's name. Empty if it will be generated.
    pub fn name(&self) -> &str {
        &self.request.name
    }

    /// Returns the namespace. Empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        &self.request.namespace
    }

    /// Returns the operation.
    pub fn operation(&self) -> Operation {
        self.request.operation
    }

    /// Returns the user of the request.
    pub fn user(&self) -> &User<'a> {
        &self.request.user_info
    }

    /// Returns the new object. `None` for a deletion.
    pub fn object(&self) -> Option<&'a RawValue> {
        self.request.object
    }

    /// Returns the existing object. `None` for a creation.
    pub fn old_object(&self) -> Option<&'a RawValue> {
        self.request.old_object
    }

    /// Returns the unparsed review.
    pub fn body(&self) -> &'a str {
        self.body
    }
}

fn version_of(api_version: &str, kind: &str) -> Result<ReviewVersion, ReviewError> {
    let versions = [ReviewVersion::V1, ReviewVersion::V1Beta1];
    let mut known = versions.into_iter();
    if let (Some(version), true) = (
        known.find(|version| version.as_str() == api_version),
        kind == KIND,
    ) {
        return Ok(version);
    }
    let what = format!("{kind:?} of {api_version:?}");
    Err(ReviewError::NotAReview(bounded(&what, MAX_SHOWN_CHARS)))
}

fn check_uid(uid: &str) -> Result<(), ReviewError> {
    if uid.is_empty() || uid.len() > MAX_UID_BYTES {
        return Err(ReviewError::NoUid);
    }
    Ok(())
}

fn present(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| raw.get() != "null")
}

fn complaint(error: &dyn fmt::Display) -> String {
    bounded(&error.to_string(), MAX_SHOWN_CHARS)
}

fn nullable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_written_as_by_the_api_server() {
        let all = [
            Operation::Create,
            Operation::Update,
            Operation::Delete,
            Operation::Connect,
        ];
        for operation in all {
            let text = format!("{:?}", operation.as_str());
            assert_eq!(serde_json::from_str::<Operation>(&text).unwrap(), operation);
        }
    }
}
