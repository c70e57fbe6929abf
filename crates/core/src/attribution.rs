//! Whose session it is, told to AWS: session tags by which policies can tell workloads apart, and
//! the source identity, which stays with a session through a chain of roles.
//!
//! The keys of the tags are those of EKS Pod Identity, so that policies need not know where a
//! session came from. Grants may not set them.

use std::sync::{Arc, LazyLock};

use crate::session_name::{SessionScope, fit};
use crate::workload::Workload;

/// Tag keys: each one is one text, however many sessions have it.
static NAMESPACE: LazyLock<Arc<str>> = LazyLock::new(|| "kubernetes-namespace".into());
static SERVICE_ACCOUNT: LazyLock<Arc<str>> = LazyLock::new(|| "kubernetes-service-account".into());
static POD_NAME: LazyLock<Arc<str>> = LazyLock::new(|| "kubernetes-pod-name".into());
static POD_UID: LazyLock<Arc<str>> = LazyLock::new(|| "kubernetes-pod-uid".into());
static CLUSTER_NAME: LazyLock<Arc<str>> = LazyLock::new(|| "eks-cluster-name".into());

/// Most session tags that STS takes.
pub const MAX_TAGS: usize = 50;
/// Most characters of a tag's key.
const MAX_KEY: usize = 128;
/// Most characters of a tag's value.
const MAX_VALUE: usize = 256;

/// Which session tags say who the workload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WorkloadTags {
    /// None.
    #[default]
    None,
    /// Namespace and service account.
    Workload,
    /// Also the pod's name and UID, so that each pod has a session of its own.
    Pod,
}

/// What the source identity of a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SourceIdentity {
    /// None is sent.
    #[default]
    None,
    /// `NAMESPACE.SERVICEACCOUNT`, whatever the session is named.
    ServiceAccount,
}

impl WorkloadTags {
    /// As it is written in grants.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Workload => "workload",
            Self::Pod => "pod",
        }
    }
}

impl SourceIdentity {
    /// As it is written in grants.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ServiceAccount => "serviceAccount",
        }
    }
}

/// How sessions say whose they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Attribution {
    /// Session tags.
    pub tags: WorkloadTags,
    /// Whether all tags of a session, a grant's own too, stay with it through a chain of roles.
    pub transitive: bool,
    /// The source identity.
    pub source: SourceIdentity,
}

/// The same, where one that comes before says what this one does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct AttributionRules {
    /// Session tags.
    pub tags: Option<WorkloadTags>,
    /// Whether tags stay through a chain.
    pub transitive: Option<bool>,
    /// The source identity.
    pub source: Option<SourceIdentity>,
}

impl Attribution {
    /// With what `rules` say instead.
    #[must_use]
    pub fn with(self, rules: AttributionRules) -> Self {
        Self {
            tags: rules.tags.unwrap_or(self.tags),
            transitive: rules.transitive.unwrap_or(self.transitive),
            source: rules.source.unwrap_or(self.source),
        }
    }

    /// Which workloads share a session, where it is `scope` otherwise: a session that is tagged
    /// with a pod can be no other's.
    pub fn scope(self, scope: SessionScope) -> SessionScope {
        match self.tags {
            WorkloadTags::Pod => SessionScope::Pod,
            WorkloadTags::None | WorkloadTags::Workload => scope,
        }
    }

    /// The session tags of a workload in the cluster of that name.
    pub fn session_tags(
        self,
        workload: &Workload,
        cluster: Option<&Arc<str>>,
    ) -> Vec<(Arc<str>, Arc<str>)> {
        let mut tags = Vec::new();
        let mut tag = |key: &LazyLock<Arc<str>>, value: &Arc<str>| {
            tags.push((Arc::clone(key), value.clone()));
        };
        if let Some(cluster) = cluster {
            tag(&CLUSTER_NAME, cluster);
        }
        if self.tags != WorkloadTags::None {
            tag(&NAMESPACE, &workload.namespace);
            tag(&SERVICE_ACCOUNT, &workload.service_account);
        }
        if self.tags == WorkloadTags::Pod {
            tag(&POD_NAME, &workload.name);
            tag(&POD_UID, &workload.uid);
        }
        tags
    }

    /// The source identity of a workload: within STS's 2 to 64 characters, with a hash where it
    /// was cut or changed for that.
    pub fn source_identity(self, workload: &Workload) -> Option<Arc<str>> {
        match self.source {
            SourceIdentity::None => None,
            SourceIdentity::ServiceAccount => {
                let (namespace, account) = (&workload.namespace, &workload.service_account);
                Some(fit(&format!("{namespace}.{account}")).into())
            }
        }
    }
}

/// Whether STS takes a tag.
pub fn is_tag(key: &str, value: &str) -> bool {
    let fine = |text: &str| {
        text.chars()
            .all(|c| c.is_alphanumeric() || " _.:/=+-@".contains(c))
    };
    !key.is_empty()
        && key.chars().count() <= MAX_KEY
        && value.chars().count() <= MAX_VALUE
        && fine(key)
        && fine(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::pod;

    #[test]
    fn tags_say_as_much_as_they_are_told_to() {
        let pod = pod(None);
        let cluster: Arc<str> = "prod".into();
        let keys = |tags, cluster: Option<&Arc<str>>| {
            let attribution = Attribution {
                tags,
                ..Attribution::default()
            };
            let tags = attribution.session_tags(&pod, cluster);
            assert!(tags.iter().all(|(key, value)| is_tag(key, value)));
            let tags = tags.iter().map(|(key, value)| format!("{key}={value}"));
            tags.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(keys(WorkloadTags::None, None), "");
        assert_eq!(
            keys(WorkloadTags::None, Some(&cluster)),
            "eks-cluster-name=prod"
        );
        assert_eq!(
            keys(WorkloadTags::Workload, None),
            "kubernetes-namespace=default kubernetes-service-account=default"
        );
        assert_eq!(
            keys(WorkloadTags::Pod, Some(&cluster)),
            "eks-cluster-name=prod kubernetes-namespace=default \
             kubernetes-service-account=default kubernetes-pod-name=app kubernetes-pod-uid=uid-1"
        );
    }

    #[test]
    fn a_long_source_identity_ends_in_a_hash() {
        let attribution = Attribution {
            source: SourceIdentity::ServiceAccount,
            ..Attribution::default()
        };
        let mut pod = pod(None);
        assert_eq!(
            attribution.source_identity(&pod).as_deref(),
            Some("default.default")
        );
        let mut long = |end: &str| {
            pod.service_account = format!("{}{end}", "x".repeat(100)).into();
            attribution.source_identity(&pod).unwrap()
        };
        assert_eq!(long("a").len(), 64);
        assert_ne!(long("a"), long("b"));
        assert_eq!(Attribution::default().source_identity(&pod), None);
    }
}
