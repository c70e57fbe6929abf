//! AdmissionReviews (`admission.k8s.io/v1`) as the API server sends them.
//!
//! The objects in them stay raw text until somebody has to look at them.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::text::shown;

/// Most bytes of a review: two objects as large as the API server takes (3 MiB), and the rest.
pub const MAX_REVIEW: usize = 8 * 1024 * 1024;
/// Most bytes of a request's UID, which the API server makes and the answer repeats.
const MAX_UID: usize = 128;
/// Most characters of a parser's complaint, which may repeat what it read.
const SHOWN: usize = 200;

pub(crate) const API_VERSION: &str = "admission.k8s.io/v1";
pub(crate) const KIND: &str = "AdmissionReview";

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
struct Envelope<'a, R> {
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(default = "Option::default")]
    request: Option<R>,
}

/// A structure that is written as an object. A list, which would be taken for its fields in their
/// order, is refused.
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
    /// Reads a body.
    ///
    /// # Errors
    /// [`ReviewError`]; where [`ReviewError::uid`] is known the request can be refused by it, and
    /// otherwise nothing but an error can be answered.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReviewError> {
        if body.len() > MAX_REVIEW {
            return Err(ReviewError::TooLarge(body.len()));
        }
        let not_json = |why: &dyn fmt::Display| ReviewError::NotJson(complaint(why));
        let body = std::str::from_utf8(body).map_err(|error| not_json(&error))?;
        // Where a list would be taken for a structure's fields in order.
        if !body.trim_ascii_start().starts_with('{') {
            return Err(not_json(&"it is no object"));
        }
        let Ok(Envelope {
            api_version,
            kind,
            request: Some(Object(request)),
        }) = serde_json::from_str::<Envelope<'a, Object<Request<'a>>>>(body)
        else {
            return Err(Self::fault(body));
        };
        check_version(&api_version, &kind)?;
        check_uid(&request.uid)?;
        Ok(Self {
            body,
            request: Request {
                object: present(request.object),
                old_object: present(request.old_object),
                ..request
            },
        })
    }

    /// What is wrong with a body that cannot be read, found by reading it part by part.
    fn fault(body: &str) -> ReviewError {
        let not_json = |error| ReviewError::NotJson(complaint(&error));
        let find = || {
            let envelope: Envelope<'_, &RawValue> = serde_json::from_str(body).map_err(not_json)?;
            check_version(&envelope.api_version, &envelope.kind)?;
            let request = present(envelope.request).ok_or(ReviewError::NoRequest)?;
            if !request.get().starts_with('{') {
                return Err(ReviewError::NoRequest);
            }
            let only: OnlyUid<'_> = serde_json::from_str(request.get()).map_err(not_json)?;
            check_uid(&only.uid)?;
            match serde_json::from_str::<Request<'_>>(request.get()) {
                Ok(_) => Ok(()),
                Err(error) => Err(ReviewError::Request {
                    uid: only.uid.into_owned(),
                    why: complaint(&error),
                }),
            }
        };
        // Its parts can be read, so its whole can't: too deep by the level of the request alone.
        let unknown = || ReviewError::NotJson("it cannot be read as a whole".into());
        find().err().unwrap_or_else(unknown)
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

fn check_version(api_version: &str, kind: &str) -> Result<(), ReviewError> {
    if api_version == API_VERSION && kind == KIND {
        return Ok(());
    }
    let what = format!("{kind:?} of {api_version:?}");
    Err(ReviewError::NotAReview(shown(&what, SHOWN)))
}

fn check_uid(uid: &str) -> Result<(), ReviewError> {
    if uid.is_empty() || uid.len() > MAX_UID {
        return Err(ReviewError::NoUid);
    }
    Ok(())
}

fn present(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| raw.get() != "null")
}

fn complaint(error: &dyn fmt::Display) -> String {
    shown(&error.to_string(), SHOWN)
}

fn nullable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
