//! Session attribution in AWS: session tags, by which policies can distinguish workloads, and the
//! source identity, which persists through role chaining.
//!
//! The tag keys are those of EKS Pod Identity, so policies do not depend on the source of a
//! session. Grants may not set them.

use std::sync::{Arc, LazyLock};

use crate::session_name::{SessionScope, fit};
use crate::workload::Workload;

/// Tag keys, interned because every session shares them.
static NAMESPACE: LazyLock<Arc<str>> = LazyLock::new(|| "kubernetes-namespace".into());
static SERVICE_ACCOUNT: LazyLock<Arc<str>> = LazyLock::new(|| "kubernetes-service-account".into());
static POD_NAME: LazyLock<Arc<str>> = LazyLock::new(|| "kubernetes-pod-name".into());
static POD_UID: LazyLock<Arc<str>> = LazyLock::new(|| "kubernetes-pod-uid".into());
static CLUSTER_NAME: LazyLock<Arc<str>> = LazyLock::new(|| "eks-cluster-name".into());

/// Maximum number of session tags that STS accepts.
pub const MAX_TAGS: usize = 50;
/// Maximum length of a tag key, in characters.
const MAX_KEY: usize = 128;
/// Maximum length of a tag value, in characters.
const MAX_VALUE: usize = 256;

/// The session tags that identify a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WorkloadTags {
    /// No tags.
    #[default]
    None,
    /// Namespace and service account.
    Workload,
    /// Also the pod's name and UID, so each pod gets its own session.
    Pod,
}

/// The source identity of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SourceIdentity {
    /// No source identity.
    #[default]
    None,
    /// `NAMESPACE.SERVICEACCOUNT`, regardless of the session name.
    ServiceAccount,
}

impl WorkloadTags {
    /// Returns the value as written in grants.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Workload => "workload",
            Self::Pod => "pod",
        }
    }
}

impl SourceIdentity {
    /// Returns the value as written in grants.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ServiceAccount => "serviceAccount",
        }
    }
}

/// The attribution settings of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Attribution {
    /// Session tags.
    pub tags: WorkloadTags,
    /// True if all session tags, including a grant's own, are transitive: they persist through role
    /// chaining.
    pub transitive: bool,
    /// The source identity.
    pub source: SourceIdentity,
}

/// Attribution settings that override those of lower precedence where they are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct AttributionRules {
    /// Session tags.
    pub tags: Option<WorkloadTags>,
    /// True if the tags are transitive.
    pub transitive: Option<bool>,
    /// The source identity.
    pub source: Option<SourceIdentity>,
}

impl Attribution {
    /// Returns these settings with the set fields of `rules` applied.
    #[must_use]
    pub fn with(self, rules: AttributionRules) -> Self {
        Self {
            tags: rules.tags.unwrap_or(self.tags),
            transitive: rules.transitive.unwrap_or(self.transitive),
            source: rules.source.unwrap_or(self.source),
        }
    }

    /// Returns the scope of sessions with these settings: [`SessionScope::Pod`] if sessions have
    /// the pod's tags, since pods then cannot share them, or else the configured `scope`.
    pub fn scope(self, scope: SessionScope) -> SessionScope {
        match self.tags {
            WorkloadTags::Pod => SessionScope::Pod,
            WorkloadTags::None | WorkloadTags::Workload => scope,
        }
    }

    /// Returns the session tags of a workload; `cluster` is the name of its cluster.
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

    /// Returns the source identity of a workload: 2 to 64 characters as STS requires, ending in a
    /// hash if the name was shortened or changed to fit.
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

/// Returns true if STS accepts the tag.
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
    use crate::test_util::pod;

    #[test]
    fn tags_follow_the_attribution_settings() {
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

    #[test]
    fn choices_are_named_as_in_grants() {
        let tags = [
            WorkloadTags::None,
            WorkloadTags::Workload,
            WorkloadTags::Pod,
        ];
        assert_eq!(tags.map(WorkloadTags::as_str), ["none", "workload", "pod"]);
        let identities = [SourceIdentity::None, SourceIdentity::ServiceAccount];
        assert_eq!(
            identities.map(SourceIdentity::as_str),
            ["none", "serviceAccount"]
        );
    }
}
