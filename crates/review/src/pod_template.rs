//! Reads the relevant parts of a pod or pod template: its service account, the roles it requests,
//! and its scheduling.

use std::collections::BTreeSet;
use std::sync::Arc;

use rolegate_core::annotation::{AnnotationKeys, MIRROR, cut, is_kept};
use rolegate_core::config::Audience;
use rolegate_core::labels::Labels;
use rolegate_core::needs::Keys;
use rolegate_core::workload::{Phase, RoleRequest, Workload};

use crate::audience::is_for_aws;
use crate::field_path::{FieldRef, Malformed, StringMap};
use crate::validate::STARTUP_TAINTS;

/// The environment variable that names the role of web identity in AWS SDKs.
pub const ROLE_VARIABLE: &str = "AWS_ROLE_ARN";

/// Fields that may name the service account in an object whose metadata is copied to its pods.
pub const ACCOUNTS_OF_OWNERS: [&[&str]; 3] = [
    &["spec"],
    &["spec", "taskRunTemplate"],
    &["spec", "template", "spec"],
];

/// Path of the required node affinity in a pod's spec.
const NODE_AFFINITY: &[&str] = &[
    "affinity",
    "nodeAffinity",
    "requiredDuringSchedulingIgnoredDuringExecution",
];

/// A pod or a pod template.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodShape<'a> {
    /// The path of the template. Empty for a pod.
    pub(crate) path: String,
    metadata: Metadata,
    pub(crate) annotations: StringMap<'a>,
    pub(crate) labels: StringMap<'a>,
    /// The service account that it names.
    pub(crate) service_account: Option<&'a str>,
    /// Roles named by environment variables.
    pub(crate) variables: Vec<RoleVariable<'a>>,
    /// Projected tokens that AWS accepts in exchange for credentials.
    pub(crate) tokens: Vec<PodToken<'a>>,
    pub(crate) node_name: Option<&'a str>,
    /// Paths of tolerations that tolerate every taint.
    pub(crate) tolerates_all: Vec<String>,
    /// Paths of tolerations of taints that keep pods off nodes that are not ready.
    pub(crate) tolerates_startup: Vec<String>,
    /// Nodes named by its node affinity.
    pub(crate) picked_nodes: Vec<PickedNodes<'a>>,
}

/// A projected token for AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodToken<'a> {
    /// The path of the source.
    pub(crate) path: String,
    /// The audience. Empty for the API server's own.
    pub(crate) audience: &'a str,
}

/// The location of annotations and labels.
#[derive(Debug, Clone, Copy, Default)]
enum Metadata {
    /// The field `metadata`.
    #[default]
    Field,
    /// The object itself.
    Itself,
}

/// Nodes that a pod selects by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PickedNodes<'a> {
    pub(crate) path: String,
    pub(crate) names: Vec<&'a str>,
}

/// An environment variable that names a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RoleVariable<'a> {
    pub(crate) path: String,
    /// The role. `None` if the value is not literal (`valueFrom`).
    pub(crate) value: Option<&'a str>,
}

impl<'a> PodShape<'a> {
    /// Reads a pod or a template. AWS accepts tokens for `audiences` in addition to the known ones.
    pub(crate) fn read(
        place: &FieldRef<'a>,
        audiences: &BTreeSet<Audience>,
    ) -> Result<Self, Malformed> {
        let mut shape = Self::of_metadata(place, place.field("metadata")?)?;
        let Some(spec) = place.field("spec")? else {
            return Ok(shape);
        };
        // The deprecated name of the field, used if the first is absent.
        shape.service_account = match spec.text("serviceAccountName")? {
            Some(name) => Some(name),
            None => spec.text("serviceAccount")?,
        };
        shape.read_scheduling(&spec)?;
        for containers in ["initContainers", "containers", "ephemeralContainers"] {
            for container in spec.list(containers)? {
                for variable in container.list("env")? {
                    if variable.text("name")? == Some(ROLE_VARIABLE) {
                        shape.variables.push(RoleVariable {
                            value: match variable.field("valueFrom")? {
                                Some(_) => None,
                                None => Some(variable.text("value")?.unwrap_or_default()),
                            },
                            path: variable.path(),
                        });
                    }
                }
            }
        }
        for volume in spec.list("volumes")? {
            let Some(projected) = volume.field("projected")? else {
                continue;
            };
            for source in projected.list("sources")? {
                if let Some(token) = source.field("serviceAccountToken")? {
                    let audience = token.text("audience")?.unwrap_or_default();
                    if is_for_aws(audience, audiences) {
                        shape.tokens.push(PodToken {
                            path: token.path(),
                            audience,
                        });
                    }
                }
            }
        }
        Ok(shape)
    }

    /// Reads the fields that select the pod's node.
    fn read_scheduling(&mut self, spec: &FieldRef<'a>) -> Result<(), Malformed> {
        self.node_name = spec.text("nodeName")?;
        for toleration in spec.list("tolerations")? {
            let lets_start = matches!(toleration.text("effect")?, None | Some("NoSchedule"));
            match toleration.text("key")? {
                None if toleration.text("operator")? == Some("Exists") => {
                    self.tolerates_all.push(toleration.path());
                }
                Some(key) if lets_start && STARTUP_TAINTS.contains(&key) => {
                    self.tolerates_startup.push(toleration.path());
                }
                _ => {}
            }
        }
        let Some(required) = spec.at(NODE_AFFINITY)? else {
            return Ok(());
        };
        for term in required.list("nodeSelectorTerms")? {
            for field in term.list("matchFields")? {
                if field.text("operator")? == Some("In") {
                    let nodes = field.list("values")?;
                    self.picked_nodes.push(PickedNodes {
                        path: field.path(),
                        names: nodes
                            .iter()
                            .filter_map(|node| node.value.as_text())
                            .collect(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Reads an object whose metadata is copied to its pods, such as Tekton's.
    pub(crate) fn read_owner(place: &FieldRef<'a>) -> Result<Self, Malformed> {
        let mut shape = Self::of_metadata(place, place.field("metadata")?)?;
        for fields in ACCOUNTS_OF_OWNERS {
            if let Some(place) = place.at(fields)?
                && shape.service_account.is_none()
            {
                shape.service_account = place.text("serviceAccountName")?;
            }
        }
        Ok(shape)
    }

    /// Reads only metadata that pods inherit.
    pub(crate) fn read_metadata(place: &FieldRef<'a>) -> Result<Self, Malformed> {
        let mut shape = Self::of_metadata(place, Some(place.clone()))?;
        shape.metadata = Metadata::Itself;
        Ok(shape)
    }

    /// Returns an otherwise empty pod with this service account.
    pub(crate) fn of_account(account: &'a str) -> Self {
        Self {
            service_account: Some(account),
            ..Self::default()
        }
    }

    fn of_metadata(
        place: &FieldRef<'a>,
        metadata: Option<FieldRef<'a>>,
    ) -> Result<Self, Malformed> {
        let (annotations, labels) = match metadata {
            Some(metadata) => (metadata.texts("annotations")?, metadata.texts("labels")?),
            None => Default::default(),
        };
        Ok(Self {
            path: place.path(),
            annotations,
            labels,
            ..Self::default()
        })
    }

    /// Returns the path of a field.
    pub(crate) fn at(&self, field: &str) -> String {
        if self.path.is_empty() {
            field.to_owned()
        } else {
            format!("{}.{field}", self.path)
        }
    }

    /// Returns the path of an annotation.
    pub(crate) fn annotation(&self, key: &str) -> String {
        match self.metadata {
            Metadata::Field => self.at(&format!("metadata.annotations[{key}]")),
            Metadata::Itself => self.at(&format!("annotations[{key}]")),
        }
    }

    /// Returns `true` for the mirror pod of a static pod.
    pub(crate) fn is_mirror(&self) -> bool {
        self.annotations.get(MIRROR).is_some()
    }

    /// Returns the role request of its annotations, as agents read it.
    pub(crate) fn role_request(&self, keys: &AnnotationKeys) -> RoleRequest {
        RoleRequest::from_annotations(keys, |key| self.annotations.get(key))
    }

    /// Returns the workload of its pods.
    pub(crate) fn workload(
        &self,
        namespace: &str,
        name: &str,
        role_request: RoleRequest,
    ) -> Workload {
        let kept = self.annotations.iter().filter(|(key, _)| is_kept(key));
        Workload {
            namespace: namespace.into(),
            name: name.into(),
            uid: Arc::default(),
            node: self.node_name.map(Into::into),
            service_account: self.service_account.unwrap_or("default").into(),
            addresses: Vec::new(),
            phase: Phase::Pending,
            host_network: false,
            mirror: self.is_mirror(),
            role_request,
            labels: Labels::from_object(self.labels.iter(), &Keys::All),
            annotations: Labels::from_object(
                kept.map(|(key, value)| (key, cut(value))),
                &Keys::All,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::json::parse;
    use crate::json::tests::raw;

    #[test]
    fn everything_that_matters_of_a_template() {
        let object = json!({"t": {
            "metadata": {"annotations": {"iam.amazonaws.com/role": " reader\n"}, "labels": {"a": "b"}},
            "spec": {
                "serviceAccount": "old", "nodeName": "n",
                "tolerations": [{"key": "a", "operator": "Exists"}, {"operator": "Exists"},
                    {"effect": "NoSchedule"}],
                "initContainers": [{"env": [{"name": "AWS_ROLE_ARN", "value": "x"}]}],
                "containers": [{}, {"env": [{"name": "A"}, {"name": "AWS_ROLE_ARN", "valueFrom": {}}]}],
                "volumes": [{"emptyDir": {}}, {"projected": {"sources": [{"secret": {}},
                    {"serviceAccountToken": {"audience": "sts.amazonaws.com"}}]}}],
            },
        }});
        let object = raw(&object);
        let object = parse(&object).unwrap();
        let place = FieldRef::root(&object).field("t").unwrap().unwrap();
        let shape = PodShape::read(&place, &BTreeSet::new()).unwrap();
        assert_eq!(shape.service_account, Some("old"));
        assert_eq!(shape.node_name, Some("n"));
        assert_eq!(shape.tolerates_all, ["t.spec.tolerations[1]"]);
        let variables: Vec<_> = shape
            .variables
            .iter()
            .map(|variable| (&*variable.path, variable.value))
            .collect();
        assert_eq!(
            variables,
            [
                ("t.spec.initContainers[0].env[0]", Some("x")),
                ("t.spec.containers[1].env[1]", None)
            ]
        );
        let tokens: Vec<_> = shape.tokens.iter().map(|token| &*token.path).collect();
        assert_eq!(
            tokens,
            ["t.spec.volumes[1].projected.sources[1].serviceAccountToken"]
        );
        let role_request = shape.role_request(&AnnotationKeys::default());
        assert_eq!(role_request.role.as_deref(), Some("reader"));
        let workload = shape.workload("shop", "", role_request);
        assert_eq!(&*workload.service_account, "old");
        assert_eq!(workload.annotations.iter().count(), 1);
    }

    #[test]
    fn malformed_fields_are_reported_with_their_path() {
        for (object, path) in [
            (json!([]), ""),
            (json!({"metadata": "x"}), "metadata"),
            (
                json!({"metadata": {"annotations": []}}),
                "metadata.annotations",
            ),
            (
                json!({"metadata": {"annotations": {"a": 1}}}),
                "metadata.annotations[a]",
            ),
            (json!({"spec": {"containers": {}}}), "spec.containers"),
            (
                json!({"spec": {"serviceAccountName": 7}}),
                "spec.serviceAccountName",
            ),
            (
                json!({"spec": {"containers": [{"env": [7]}]}}),
                "spec.containers[0].env[0]",
            ),
        ] {
            let text = raw(&object);
            let read = parse(&text).unwrap();
            let malformed = PodShape::read(&FieldRef::root(&read), &BTreeSet::new()).unwrap_err();
            assert_eq!(malformed.path, path, "{object}");
        }
    }
}
