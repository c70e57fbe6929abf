//! Owners of the objects that the controller creates. Kubernetes deletes an object with its owner,
//! so uninstalling leaves none behind.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::PartialObjectMeta;
use kube::{Api, Resource};

/// An object that may own others.
#[derive(Debug)]
pub(crate) enum Owner {
    /// It exists.
    Found(OwnerReference),
    /// It does not exist.
    Absent,
    /// The controller may not read it.
    Forbidden,
}

impl Owner {
    /// Looks up the object `name`.
    pub(crate) async fn find<K>(api: &Api<PartialObjectMeta<K>>, name: &str) -> kube::Result<Self>
    where
        K: Resource<DynamicType = ()> + Clone + fmt::Debug,
    {
        let object = match api.get_opt(name).await {
            Ok(object) => object,
            Err(kube::Error::Api(status)) if status.code == 403 => return Ok(Self::Forbidden),
            Err(error) => return Err(error),
        };
        let uid = object.and_then(|object| object.metadata.uid);
        Ok(uid.map_or(Self::Absent, |uid| {
            Self::Found(OwnerReference {
                api_version: K::api_version(&()).into(),
                kind: K::kind(&()).into(),
                name: name.to_owned(),
                uid,
                ..OwnerReference::default()
            })
        }))
    }

    /// Returns the owner references of an object that it owns; `None` unless it was found.
    pub(crate) fn references(self) -> Option<Vec<OwnerReference>> {
        match self {
            Self::Found(owner) => Some(vec![owner]),
            Self::Absent | Self::Forbidden => None,
        }
    }
}
