//! The volume with the pod's token.

use serde_json::{Value, json};

use super::patch::{AddOperation, Pointer};
use super::settings::TokenSettings;
use crate::field_path::{FieldRef, Malformed};
use crate::json::Node;

/// Maximum number of names that are tried for the volume.
const MAX_NAMES: usize = 8;

/// The volume of the token.
pub(super) struct TokenVolume<'a> {
    /// The name: the configured one, or the first free one derived from it.
    pub(super) name: String,
    /// True if the pod has the volume.
    pub(super) exists: bool,
    token: &'a TokenSettings,
    audience: &'a str,
    expiration: u32,
}

impl<'a> TokenVolume<'a> {
    /// Finds the pod's token volume, or a free name for it. A volume counts as the token's only if
    /// its content is such a token: another volume of the configured name is left alone, and
    /// returned as the second value.
    pub(super) fn find(
        spec: &FieldRef<'_>,
        token: &'a TokenSettings,
        audience: &'a str,
        expiration: u32,
    ) -> Result<(Self, Option<String>), Malformed> {
        let volumes = spec.list("volumes")?;
        let mut found = Self {
            name: String::new(),
            exists: false,
            token,
            audience,
            expiration,
        };
        let mut taken = None;
        for number in 0..MAX_NAMES {
            let name = match number {
                0 => token.volume.clone(),
                1 => format!("rolegate-{}", token.volume),
                _ => format!("rolegate-{}-{number}", token.volume),
            };
            let mut volume = None;
            for candidate in &volumes {
                if candidate.text("name")? == Some(&name) {
                    volume = Some(candidate);
                }
            }
            match volume {
                Some(volume) if !found.is_token(volume)? => {
                    taken.get_or_insert(name);
                }
                volume => {
                    found.name = name;
                    found.exists = volume.is_some();
                    return Ok((found, taken.filter(|_| volume.is_none())));
                }
            }
        }
        Err(Malformed {
            path: "spec.volumes".into(),
            wanted: "a list with fewer volumes whose names are those of tokens",
        })
    }

    /// Returns true if the volume projects one token of this audience at the expected path, and
    /// nothing else.
    fn is_token(&self, volume: &FieldRef<'_>) -> Result<bool, Malformed> {
        let Some(projected) = volume.field("projected")? else {
            return Ok(false);
        };
        let [source] = &*projected.list("sources")? else {
            return Ok(false);
        };
        let Some(token) = source.field("serviceAccountToken")? else {
            return Ok(false);
        };
        Ok(token.text("audience")? == Some(self.audience)
            && token.text("path")? == Some(&self.token.file))
    }

    fn value(&self) -> Value {
        json!({"name": self.name, "projected": {"sources": [{"serviceAccountToken": {
            "audience": self.audience,
            "expirationSeconds": self.expiration,
            "path": self.token.file,
        }}]}})
    }

    /// Returns the operation that adds the volume. `None` if the pod has it.
    pub(super) fn operation(&self, spec: &FieldRef<'_>) -> Result<Option<AddOperation>, Malformed> {
        if self.exists {
            return Ok(None);
        }
        let mut operations = Vec::new();
        let has_volumes = spec
            .field("volumes")?
            .is_some_and(|volumes| matches!(volumes.value, Node::List(_)));
        Pointer::new(&["spec"]).append(&mut operations, "volumes", has_volumes, vec![self.value()]);
        Ok(operations.pop())
    }
}
