//! JSON without duplicate members.
//!
//! JSON does not define which value counts if a member occurs twice. A token whose members are read
//! differently by two programs could name one pod to the first and another pod to the second.

use std::borrow::Cow;
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor,
};

/// Maximum number of members of one object. Kubernetes' objects in tokens have fewer than 10; a JWK
/// has fewer than 20.
const MAX_MEMBERS: usize = 64;
/// Maximum nesting of objects and arrays. Kubernetes' claims are nested 3 deep.
const MAX_DEPTH: usize = 16;

/// The reason why a text is not acceptable JSON.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(serde_json::Error);

/// Parses a text, and refuses objects with duplicate members at any depth.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    Checked(MAX_DEPTH)
        .deserialize(&mut reader)
        .and_then(|()| reader.end())
        .map_err(JsonError)?;
    serde_json::from_slice(text).map_err(JsonError)
}

/// A value that is read, checked and not kept, with the remaining depth.
#[derive(Clone, Copy)]
struct Checked(usize);

impl Checked {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let left = self.0.checked_sub(1);
        left.map(Self)
            .ok_or_else(|| E::custom(format_args!("nested more than {MAX_DEPTH} deep")))
    }
}

impl<'de> DeserializeSeed<'de> for Checked {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let deeper = self.deeper()?;
        while items.next_element_seed(deeper)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let deeper = self.deeper()?;
        // A linear search is fastest for so few members.
        let mut names: Vec<Cow<'de, str>> = Vec::with_capacity(8);
        while let Some(name) = members.next_key_seed(Name)? {
            if names.contains(&name) {
                return Err(A::Error::custom(format_args!("duplicate member {name:?}")));
            }
            if names.len() == MAX_MEMBERS {
                return Err(A::Error::custom(format_args!(
                    "an object has more than {MAX_MEMBERS} members"
                )));
            }
            names.push(name);
            members.next_value_seed(deeper)?;
        }
        Ok(())
    }
}

/// The name of a member, without a copy if it has no escapes.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a member")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn refused(text: &str) -> String {
        parse::<Value>(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn duplicate_members_are_refused_at_any_depth() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":{"b":1,"c":[{"d":1,"e":2,"d":3}]}}"#,
            // The same name in another spelling.
            r#"{"sub":1,"s\u0075b":2}"#,
        ] {
            assert!(refused(text).contains("duplicate member"), "{text}");
        }
        assert!(parse::<Value>(br#"{"a":{"a":[{"a":null}]}, "b": 1.5}"#).is_ok());
    }

    #[test]
    fn objects_and_depth_are_bounded() {
        let members = |count| {
            let members: Vec<_> = (0..count).map(|n| format!("\"{n}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert!(parse::<Value>(members(MAX_MEMBERS).as_bytes()).is_ok());
        assert!(refused(&members(MAX_MEMBERS + 1)).contains("members"));
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse::<Value>(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(refused(&nested(MAX_DEPTH + 1)).contains("nested"));
        assert!(refused(&nested(10_000)).contains("nested"));
    }

    #[test]
    fn text_after_the_value_is_refused() {
        assert!(parse::<Value>(b"{} {}").is_err());
        assert!(parse::<Value>(b"").is_err());
    }
}
