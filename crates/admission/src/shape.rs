//! What matters of a pod or a pod template: who it runs as, what it asks for, where it may run.

use std::sync::Arc;

use rolegate_core::annotation::{AnnotationKeys, MIRROR, SESSION_NAME, cut, is_kept};
use rolegate_core::key_values::KeyValues;
use rolegate_core::needs::Keys;
use rolegate_core::workload::{Phase, Wish, Workload};

use crate::gate::STARTUP_TAINTS;
use crate::place::{Malformed, Place, Texts};

/// The variable by which SDKs are told the role of web identity.
pub const ROLE_VARIABLE: &str = "AWS_ROLE_ARN";

/// A pod or a template of pods.
#[derive(Debug, Clone)]
pub(crate) struct PodShape<'a> {
    /// The path of the template; empty for a pod.
    pub(crate) path: String,
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
}

/// An environment variable that names a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RoleVariable<'a> {
    pub(crate) path: String,
    /// The role; `None` where it comes from elsewhere.
    pub(crate) value: Option<&'a str>,
}

impl<'a> PodShape<'a> {
    /// Reads a pod or a template.
    pub(crate) fn read(place: &Place<'a>) -> Result<Self, Malformed> {
        let mut shape = Self::of_metadata(place)?;
        let Some(spec) = place.field("spec")? else {
            return Ok(shape);
        };
        // The second is the same field's name of old, which still counts where the first is absent.
        shape.service_account = match spec.text("serviceAccountName")? {
            Some(name) => Some(name),
            None => spec.text("serviceAccount")?,
        };
        shape.node_name = spec.text("nodeName")?;
        for toleration in spec.list("tolerations")? {
            let lets_start = matches!(toleration.text("effect")?, None | Some("NoSchedule"));
            match toleration.text("key")? {
                None if toleration.text("operator")? == Some("Exists") => {
                    shape.tolerates_all.push(toleration.path());
                }
                Some(key) if lets_start && STARTUP_TAINTS.contains(&key) => {
                    shape.tolerates_startup.push(toleration.path());
                }
                _ => {}
            }
        }
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
                    && token.text("audience")?.is_some_and(is_aws_audience)
                {
                    shape.tokens.push(token.path());
                }
            }
        }
        Ok(shape)
    }

    /// Reads an object whose metadata its pods take over, such as Tekton's.
    pub(crate) fn read_owner(place: &Place<'a>) -> Result<Self, Malformed> {
        let mut shape = Self::of_metadata(place)?;
        for fields in [&["spec"][..], &["spec", "taskRunTemplate"]] {
            if let Some(place) = place.at(fields)?
                && shape.service_account.is_none()
            {
                shape.service_account = place.text("serviceAccountName")?;
            }
        }
        Ok(shape)
    }

    fn of_metadata(place: &Place<'a>) -> Result<Self, Malformed> {
        let (annotations, labels) = match place.field("metadata")? {
            Some(metadata) => (metadata.texts("annotations")?, metadata.texts("labels")?),
            None => Default::default(),
        };
        Ok(Self {
            path: place.path(),
            annotations,
            labels,
            service_account: None,
            variables: Vec::new(),
            tokens: Vec::new(),
            node_name: None,
            tolerates_all: Vec::new(),
            tolerates_startup: Vec::new(),
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
        self.at(&format!("metadata.annotations[{key}]"))
    }

    /// Whether it is the mirror of a static pod.
    pub(crate) fn is_mirror(&self) -> bool {
        self.annotations.get(MIRROR).is_some()
    }

    /// What its annotations ask for, read as the doors read it.
    pub(crate) fn wish(&self, keys: &AnnotationKeys) -> Wish {
        let given = |key| {
            let value = self.annotations.get(key)?;
            Some(cut(value.trim()))
        };
        Wish {
            // Empty is an answer here: the pod declines the default role.
            role: given(&keys.role).map(Into::into),
            external_id: given(&keys.external_id)
                .filter(|id| !id.is_empty())
                .map(Into::into),
            session_name: given(SESSION_NAME)
                .filter(|name| !name.is_empty())
                .map(Into::into),
        }
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

/// Whether a token for this audience is one that AWS takes for credentials: STS's names in all
/// partitions, and that of EKS Pod Identity.
pub(crate) fn is_aws_audience(audience: &str) -> bool {
    let lower = audience.to_ascii_lowercase();
    let host = lower.split_once("://").map_or(&*lower, |(_, host)| host);
    let sts = host.starts_with("sts.") || host.starts_with("sts-fips.");
    sts && host.contains("amazonaws.") || host.starts_with("pods.eks.amazonaws.")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::json::parse;
    use crate::json::tests::raw;

    #[test]
    fn threat_14_audiences_of_aws_in_every_partition() {
        for audience in [
            "sts.amazonaws.com",
            "STS.amazonaws.com",
            "https://sts.amazonaws.com/",
            "sts.eu-west-1.amazonaws.com",
            "sts.cn-north-1.amazonaws.com.cn",
            "sts-fips.us-east-1.amazonaws.com",
            "sts.eusc-de-east-1.amazonaws.eu",
            "pods.eks.amazonaws.com",
        ] {
            assert!(is_aws_audience(audience), "{audience}");
        }
        for audience in [
            "",
            "vault",
            "amazonaws.com",
            "s3.amazonaws.com",
            "sts.example.com",
        ] {
            assert!(!is_aws_audience(audience), "{audience}");
        }
    }

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
        let shape = PodShape::read(&place).unwrap();
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
            let malformed = PodShape::read(&Place::root(&read)).unwrap_err();
            assert_eq!(malformed.path, path, "{object}");
        }
    }
}
