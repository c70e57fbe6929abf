//! What matters of a pod or a pod template: who it runs as, what it asks for, where it may run.

use std::collections::BTreeSet;
use std::sync::Arc;

use rolegate_core::annotation::{AnnotationKeys, MIRROR, cut, is_kept, wish};
use rolegate_core::config::Audience;
use rolegate_core::key_values::KeyValues;
use rolegate_core::needs::Keys;
use rolegate_core::workload::{Phase, Wish, Workload};

use crate::audience::is_for_aws;
use crate::gate::STARTUP_TAINTS;
use crate::place::{Malformed, Place, Texts};

/// The variable by which SDKs are told the role of web identity.
pub const ROLE_VARIABLE: &str = "AWS_ROLE_ARN";

/// The fields in which an object whose metadata its pods take over may name their service account.
pub const ACCOUNTS_OF_OWNERS: [&[&str]; 3] = [
    &["spec"],
    &["spec", "taskRunTemplate"],
    &["spec", "template", "spec"],
];

/// The fields of a pod's spec that lead to what its node must be like.
const NODE_AFFINITY: &[&str] = &[
    "affinity",
    "nodeAffinity",
    "requiredDuringSchedulingIgnoredDuringExecution",
];

/// A pod or a template of pods.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodShape<'a> {
    /// The path of the template; empty for a pod.
    pub(crate) path: String,
    metadata: Metadata,
    pub(crate) annotations: Texts<'a>,
    pub(crate) labels: Texts<'a>,
    /// The service account it names.
    pub(crate) service_account: Option<&'a str>,
    /// Roles named by environment variables.
    pub(crate) variables: Vec<RoleVariable<'a>>,
    /// Paths of tokens that AWS takes for credentials.
    pub(crate) tokens: Vec<String>,
    pub(crate) node_name: Option<&'a str>,
    /// Paths of tolerations that tolerate everything.
    pub(crate) tolerates_all: Vec<String>,
    /// Paths of tolerations of taints that keep pods from nodes that are not ready.
    pub(crate) tolerates_startup: Vec<String>,
    /// Nodes that its node affinity names.
    pub(crate) picked_nodes: Vec<PickedNodes<'a>>,
}

/// The place of annotations and labels.
#[derive(Debug, Clone, Copy, Default)]
enum Metadata {
    /// In the field `metadata`.
    #[default]
    Field,
    /// In the object itself.
    Itself,
}

/// Nodes that a pod picks by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PickedNodes<'a> {
    pub(crate) path: String,
    pub(crate) names: Vec<&'a str>,
}

/// An environment variable that names a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RoleVariable<'a> {
    pub(crate) path: String,
    /// The role; `None` where it comes from elsewhere.
    pub(crate) value: Option<&'a str>,
}

impl<'a> PodShape<'a> {
    /// Reads a pod or a template. AWS takes tokens for `audiences` for credentials, beside those that
    /// are known.
    pub(crate) fn read(
        place: &Place<'a>,
        audiences: &BTreeSet<Audience>,
    ) -> Result<Self, Malformed> {
        let mut shape = Self::of_metadata(place, place.field("metadata")?)?;
        let Some(spec) = place.field("spec")? else {
            return Ok(shape);
        };
        // The second is the same field's name of old, which still counts where the first is absent.
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
                if let Some(token) = source.field("serviceAccountToken")?
                    && is_for_aws(token.text("audience")?.unwrap_or_default(), audiences)
                {
                    shape.tokens.push(token.path());
                }
            }
        }
        Ok(shape)
    }

    /// Reads what says where a pod may run.
    fn read_scheduling(&mut self, spec: &Place<'a>) -> Result<(), Malformed> {
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

    /// Reads an object whose metadata its pods take over, such as Tekton's.
    pub(crate) fn read_owner(place: &Place<'a>) -> Result<Self, Malformed> {
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
    pub(crate) fn read_metadata(place: &Place<'a>) -> Result<Self, Malformed> {
        let mut shape = Self::of_metadata(place, Some(place.clone()))?;
        shape.metadata = Metadata::Itself;
        Ok(shape)
    }

    /// A pod that says nothing, of this service account.
    pub(crate) fn of_account(account: &'a str) -> Self {
        Self {
            service_account: Some(account),
            ..Self::default()
        }
    }

    fn of_metadata(place: &Place<'a>, metadata: Option<Place<'a>>) -> Result<Self, Malformed> {
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

    /// The path of a field of this.
    pub(crate) fn at(&self, field: &str) -> String {
        if self.path.is_empty() {
            field.to_owned()
        } else {
            format!("{}.{field}", self.path)
        }
    }

    /// The path of an annotation.
    pub(crate) fn annotation(&self, key: &str) -> String {
        match self.metadata {
            Metadata::Field => self.at(&format!("metadata.annotations[{key}]")),
            Metadata::Itself => self.at(&format!("annotations[{key}]")),
        }
    }

    /// Whether it is the mirror of a static pod.
    pub(crate) fn is_mirror(&self) -> bool {
        self.annotations.get(MIRROR).is_some()
    }

    /// What its annotations ask for, read as the doors read it.
    pub(crate) fn wish(&self, keys: &AnnotationKeys) -> Wish {
        wish(keys, |key| self.annotations.get(key))
    }

    /// The workload that its pods would be.
    pub(crate) fn workload(&self, namespace: &str, name: &str, wish: Wish) -> Workload {
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
            wish,
            labels: KeyValues::of_object(self.labels.iter(), &Keys::All),
            annotations: KeyValues::of_object(
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
                "tolerations": [{"key": "a", "operator": "Exists"}, {"operator": "Exists"}],
                "initContainers": [{"env": [{"name": "AWS_ROLE_ARN", "value": "x"}]}],
                "containers": [{}, {"env": [{"name": "A"}, {"name": "AWS_ROLE_ARN", "valueFrom": {}}]}],
                "volumes": [{"emptyDir": {}}, {"projected": {"sources": [{"secret": {}},
                    {"serviceAccountToken": {"audience": "sts.amazonaws.com"}}]}}],
            },
        }});
        let object = raw(&object);
        let object = parse(&object).unwrap();
        let place = Place::root(&object).field("t").unwrap().unwrap();
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
        assert_eq!(
            shape.tokens,
            ["t.spec.volumes[1].projected.sources[1].serviceAccountToken"]
        );
        let wish = shape.wish(&AnnotationKeys::default());
        assert_eq!(wish.role.as_deref(), Some("reader"));
        let workload = shape.workload("shop", "", wish);
        assert_eq!(&*workload.service_account, "old");
        assert_eq!(workload.annotations.iter().count(), 1);
    }

    #[test]
    fn what_is_malformed_is_told_with_its_place() {
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
            let malformed = PodShape::read(&Place::root(&read), &BTreeSet::new()).unwrap_err();
            assert_eq!(malformed.path, path, "{object}");
        }
    }
}
