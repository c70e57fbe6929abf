//! The identity of a pod: from its service account, from an association, or from the files and the
//! ConfigMap of the EKS webhook.

use std::collections::HashSet;

use rolegate_core::arn::{BaseArn, resolve};
use rolegate_core::service_account::{
    AssignmentError, AssignmentSource, RoleAssignment, ServiceAccountAnnotations,
};
use rolegate_core::text::bounded;
use serde::Deserialize;

use super::config_map::{Entry, NAME, PodIdentityConfig};
use super::settings::{AssignedMethod, InjectionSettings, InvalidArn};

/// Maximum number of characters of a value in a warning.
const MAX_VALUE_CHARS: usize = 100;

/// The way in which a pod gets credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// The SDK exchanges the pod's token for credentials of this role at STS.
    WebIdentity {
        /// The role's ARN.
        role: String,
    },
    /// The SDK sends the pod's token to the container credentials endpoint, which knows the role.
    ContainerCredentials,
}

impl Method {
    /// Returns the name in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::WebIdentity { .. } => "sts_web_identity",
            Self::ContainerCredentials => "container_credentials",
        }
    }
}

/// The identity to inject. Absent values are those of the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The method.
    pub method: Method,
    /// The audience of the token.
    pub audience: Option<String>,
    /// True to use the regional endpoints of STS.
    pub regional: Option<bool>,
    /// The expiration of the token, in seconds.
    pub expiration: Option<u32>,
}

/// The result of a resolution.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolved {
    /// The identity. `None`: the pod gets no credentials.
    pub identity: Option<Identity>,
    /// A sentence about a fault, for the user that submits the pod.
    pub warning: Option<String>,
}

/// The sources of identities for one service account.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The annotations of the service account.
    pub annotations: &'a ServiceAccountAnnotations,
    /// The assignment by the service account's annotations or by an association.
    pub assignment: &'a Result<Option<RoleAssignment>, AssignmentError>,
    /// The service accounts with container credentials.
    pub container_identities: &'a ContainerIdentities,
    /// The ConfigMap of the EKS webhook.
    pub config_map: &'a PodIdentityConfig,
    /// The ARN that completes role names of the ConfigMap.
    pub base: Option<&'a BaseArn>,
}

impl Sources<'_> {
    /// Returns the identity of pods of a service account. The order is that of the EKS webhook: its
    /// file of container credentials, the service account, its ConfigMap.
    pub fn resolve(
        &self,
        namespace: &str,
        account: &str,
        settings: &InjectionSettings,
    ) -> Resolved {
        if self.container_identities.contains(namespace, account) {
            let exact = self.config_map.exact(namespace, account);
            return Resolved::from(self.container_credentials(exact));
        }
        match self.assignment {
            Ok(Some(assignment)) => Resolved::from(self.assigned(assignment, settings)),
            Err(error) => self.invalid(error, settings),
            // An empty annotation declines every role.
            Ok(None) if self.annotations.role.as_deref() == Some("") => Resolved::default(),
            Ok(None) => match self.config_map.find(namespace, account) {
                Ok(Some(entry)) => self.by_config_map(entry, settings),
                Ok(None) => Resolved::default(),
                Err(error) => Resolved {
                    identity: None,
                    warning: Some(format!("the pod gets no role: {error}")),
                },
            },
        }
    }

    fn regional(&self) -> Option<bool> {
        boolean(self.annotations.regional_sts.as_deref()?)
    }

    fn expiration(&self) -> Option<u32> {
        self.annotations.token_expiration.as_deref()?.parse().ok()
    }

    fn container_credentials(&self, entry: Option<&Entry>) -> Identity {
        let entry_expiration = || entry.and_then(|entry| entry.expiration);
        Identity {
            method: Method::ContainerCredentials,
            audience: None,
            regional: self.regional().or(entry.map(|entry| entry.regional)),
            expiration: self.expiration().or_else(entry_expiration),
        }
    }

    fn web_identity(&self, role: &str) -> Identity {
        Identity {
            method: Method::WebIdentity { role: role.into() },
            audience: self.annotations.audience.as_deref().map(str::to_owned),
            regional: self.regional(),
            expiration: self.expiration(),
        }
    }

    fn assigned(&self, assignment: &RoleAssignment, settings: &InjectionSettings) -> Identity {
        let is_eks = assignment.source == AssignmentSource::EksAnnotation;
        // STS cannot assume a target role or check an external ID for a token.
        let needs_endpoint = assignment.target_role.is_some() || assignment.external_id.is_some();
        let by_endpoint = settings.assigned == AssignedMethod::ContainerCredentials;
        if needs_endpoint || by_endpoint && !is_eks {
            self.container_credentials(None)
        } else {
            self.web_identity(assignment.role.as_str())
        }
    }

    fn invalid(&self, error: &AssignmentError, settings: &InjectionSettings) -> Resolved {
        let written = self.annotations.web_identity_role.as_deref();
        let identity = match (error, settings.invalid_arn, written) {
            (
                AssignmentError::InvalidRole {
                    source_of_role: AssignmentSource::EksAnnotation,
                    ..
                },
                InvalidArn::Inject,
                Some(role),
            ) => Some(self.web_identity(role)),
            _ => None,
        };
        Resolved {
            warning: Some(match identity {
                Some(_) => error.to_string(),
                None => format!("the pod gets no role: {error}"),
            }),
            identity,
        }
    }

    fn by_config_map(&self, entry: &Entry, settings: &InjectionSettings) -> Resolved {
        if entry.role.is_empty() {
            return Resolved::default();
        }
        let (role, warning) = match resolve(&entry.role, self.base) {
            Ok(role) => (role.to_string(), None),
            Err(error) => {
                let value = bounded(&entry.role, MAX_VALUE_CHARS);
                let warning = format!("RoleARN {value:?} of ConfigMap {NAME}: {error}");
                if settings.invalid_arn == InvalidArn::Skip {
                    return Resolved {
                        identity: None,
                        warning: Some(format!("the pod gets no role: {warning}")),
                    };
                }
                (entry.role.clone(), Some(warning))
            }
        };
        Resolved {
            identity: Some(Identity {
                method: Method::WebIdentity { role },
                audience: entry.audience.clone(),
                regional: Some(entry.regional),
                expiration: entry.expiration,
            }),
            warning,
        }
    }
}

impl From<Identity> for Resolved {
    fn from(identity: Identity) -> Self {
        Self {
            identity: Some(identity),
            warning: None,
        }
    }
}

/// Reads a boolean as Go's `strconv.ParseBool`.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// The service accounts with container credentials, from the file of the EKS webhook.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerIdentities(HashSet<(String, String)>);

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    identities: Option<Vec<FileEntry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileEntry {
    namespace: String,
    service_account: String,
}

impl ContainerIdentities {
    /// Parses the file: `{"identities":[{"namespace":…,"serviceAccount":…}]}`. An empty file has no
    /// identities.
    ///
    /// # Errors
    /// Returns a sentence if the file is not such JSON.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let file: File = serde_json::from_str(text)
            .map_err(|error| bounded(&error.to_string(), MAX_VALUE_CHARS))?;
        let entries = file.identities.into_iter().flatten();
        Ok(Self(
            entries
                .map(|entry| (entry.namespace, entry.service_account))
                .collect(),
        ))
    }

    /// Returns true if the service account has container credentials.
    pub fn contains(&self, namespace: &str, account: &str) -> bool {
        !self.0.is_empty() && self.0.contains(&(namespace.to_owned(), account.to_owned()))
    }
}
