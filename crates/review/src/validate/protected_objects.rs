//! The checks that protect the rules themselves: role annotations of namespaces and the labels that
//! grants select, RoleGrants, the RolegateConfig and ConfigMaps of policies. They also protect
//! pods' annotations against changes through the pod's status or a binding.

use rolegate_core::annotation::{ALLOWED_ROLES, DEFAULT_ROLE, MIRROR, PERMITTED, SESSION_NAME};
use rolegate_core::config::{DATA_LABEL, Subjects};
use rolegate_core::decision::NotSynced;
use rolegate_core::layer::LayerId;
use rolegate_core::namespace::NAME_LABEL;
use serde_json::value::RawValue;

use super::{Change, Validator, read};
use crate::admission_review::Operation;
use crate::field_path::{FieldRef, Malformed, StringMap};
use crate::json::{Map, Node};
use crate::outcome::{Undecided, Violation};
use crate::target::ReviewTarget;

/// The annotation with a policy's status. A change of the status does not change the policy.
const STATUS_ANNOTATION: &str = "openpolicyagent.org/kube-mgmt-status";
/// The ConfigMap that the control plane writes in every namespace, and the account that writes it.
const ROOT_CA: (&str, &str) = (
    "kube-root-ca.crt",
    "system:serviceaccount:kube-system:root-ca-cert-publisher",
);
/// The account that deletes the objects of a terminating namespace.
const NAMESPACE_CONTROLLER: &str = "system:serviceaccount:kube-system:namespace-controller";

/// The control plane's controllers that create, scale and delete the pods of users' workloads, by
/// their service accounts in `kube-system`. Other accounts of that namespace have no privileges
/// here.
pub const CONTROLLERS: &[&str] = &[
    "cronjob-controller",
    "daemon-set-controller",
    "deployment-controller",
    "generic-garbage-collector",
    "job-controller",
    "replicaset-controller",
    "replication-controller",
    "statefulset-controller",
];

const ASK: &str = "ask your cluster's administrator";

impl Validator<'_> {
    /// Checks a deletion. Only rule writers may delete objects that hold rules, since deleting a
    /// rule such as a policy may allow more.
    pub(super) fn deletion(&mut self, subject: ReviewTarget<'_>) -> Result<(), Malformed> {
        let guarded = matches!(
            subject,
            ReviewTarget::Rules | ReviewTarget::ConfigMap | ReviewTarget::Namespace
        );
        if guarded && self.waits_for(&[NotSynced::Config]) {
            return Ok(());
        }
        let guarded = match subject {
            ReviewTarget::Rules => true,
            ReviewTarget::ConfigMap => {
                let controller = self.review.user().name == NAMESPACE_CONTROLLER;
                let old = self.review.old_object().map(read).transpose()?;
                !controller && self.is_policy(old.as_ref())?
            }
            ReviewTarget::Namespace => {
                let namespaces = &self.rules.config.rego.namespaces;
                self.review.subresource().is_empty() && namespaces.contains(self.review.name())
            }
            _ => false,
        };
        if guarded && !self.may_write_rules() {
            self.guard(
                "",
                "rule writers",
                &format!("only the configuration's ruleWriters may delete it; {ASK}"),
            );
        }
        Ok(())
    }

    /// Checks a change of a RoleGrant or the RolegateConfig.
    pub(super) fn rule_object(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        if self.waits_for(&[NotSynced::Config]) {
            return Ok(());
        }
        self.validity(change);
        self.rule_change(change, "a grant or the configuration")
    }

    /// Checks a change of a ConfigMap that contains policies or their data, or contained them
    /// before.
    pub(super) fn config_map(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        if self.waits_for(&[NotSynced::Config]) {
            return Ok(());
        }
        let publisher =
            self.review.user().name == ROOT_CA.1 && self.object_name(&change.new)? == ROOT_CA.0;
        let is_policy =
            self.is_policy(Some(&change.new))? || self.is_policy(change.old.as_ref())?;
        if publisher || !is_policy {
            return Ok(());
        }
        self.rule_change(change, "a ConfigMap of policies or their data")
    }

    fn rule_change(&mut self, change: &Change<'_>, what: &str) -> Result<(), Malformed> {
        if self.may_write_rules() {
            return Ok(());
        }
        let unchanged = match &change.old {
            Some(old) => content(old) == content(&change.new),
            None => false,
        };
        if !unchanged {
            self.guard(
                "",
                "rule writers",
                &format!("only the configuration's ruleWriters may write {what}; {ASK}"),
            );
        }
        Ok(())
    }

    /// Returns true, with an undecided outcome, while one of the `parts` is not loaded. Callers
    /// pass only the parts that name the allowed writers, so that an administrator can revert a
    /// configuration whose policies or grants cannot be loaded. Members of `system:masters` may
    /// always write.
    fn waits_for(&mut self, parts: &[NotSynced]) -> bool {
        let master = self.review.user().is_in("system:masters");
        let not_synced = self
            .rules
            .rules
            .not_synced
            .filter(|_| !master)
            .filter(|part| parts.contains(part));
        if let Some(part) = not_synced {
            self.outcome.undecided = Some(Undecided::Rules(part));
        }
        not_synced.is_some()
    }

    /// Returns true if the user may write rules. A configuration that is missing or invalid names
    /// no writers. Then only members of `system:masters` may write grants and policies. The writers
    /// whom the old configuration names may still write the configuration, so that the
    /// administrators who maintained it can restore it.
    fn may_write_rules(&self) -> bool {
        if self.rules.rules.missing.is_none() {
            let writers = self.rules.config.rule_writers.as_ref();
            return writers.is_none_or(|writers| self.is_among(writers));
        }
        if &*self.review.kind().kind != "RolegateConfig" {
            return self.is_among(&Subjects::default());
        }
        let old = self.review.old_object().and_then(old_rule_writers);
        old.is_none_or(|writers| self.is_among(&writers))
    }

    pub(super) fn is_rule_writer(&self) -> bool {
        let default = Subjects::default();
        let writers = self.rules.config.rule_writers.as_ref();
        self.is_among(writers.unwrap_or(&default))
    }

    fn is_namespace_writer(&self) -> bool {
        let default = Subjects::default();
        let writers = self.rules.config.namespace_writers.as_ref();
        self.is_among(writers.unwrap_or(&default))
    }

    pub(super) fn is_among(&self, subjects: &Subjects) -> bool {
        let user = self.review.user();
        subjects.contains(&user.name, user.groups.iter().map(String::as_str))
    }

    /// Returns true if the user is one of the control plane's controllers. They use a service
    /// account each, or one shared user, depending on a flag of kube-controller-manager.
    pub(super) fn is_controller(&self) -> bool {
        let name = &*self.review.user().name;
        let account = name.strip_prefix("system:serviceaccount:kube-system:");
        name == "system:kube-controller-manager"
            || account.is_some_and(|account| CONTROLLERS.contains(&account))
    }

    pub(super) fn in_policy_namespace(&self) -> bool {
        let namespaces = &self.rules.config.rego.namespaces;
        namespaces.contains(self.review.namespace())
    }

    fn object_name(&self, object: &Node<'_>) -> Result<String, Malformed> {
        if !self.review.name().is_empty() {
            return Ok(self.review.name().to_owned());
        }
        let metadata = FieldRef::root(object).field("metadata")?;
        let name = metadata.map(|metadata| metadata.text("name")).transpose()?;
        Ok(name.flatten().unwrap_or_default().to_owned())
    }

    fn is_policy(&self, object: Option<&Node<'_>>) -> Result<bool, Malformed> {
        let Some(object) = object.filter(|_| self.in_policy_namespace()) else {
            return Ok(false);
        };
        let rego = &self.rules.config.rego;
        let Some((key, value)) = &rego.label else {
            return Ok(true);
        };
        let name = self.object_name(object)?;
        let required = rego
            .required
            .iter()
            .any(|(namespace, known)| **namespace == *self.review.namespace() && **known == *name);
        let labels = match FieldRef::root(object).field("metadata")? {
            Some(metadata) => metadata.texts("labels")?,
            None => StringMap::default(),
        };
        Ok(required
            || labels.get(key) == Some(value)
            || labels.get(DATA_LABEL.0) == Some(DATA_LABEL.1))
    }

    /// Checks a change of a namespace. Only namespace writers may change the annotations and labels
    /// that decide about the roles of the namespace's pods.
    pub(super) fn namespace(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        // Grants determine which labels decide about roles.
        let parts = [NotSynced::Config, NotSynced::Grants];
        if self.waits_for(&parts) || self.is_namespace_writer() {
            return Ok(());
        }
        let metadata = |object| -> Result<(StringMap<'_>, StringMap<'_>), Malformed> {
            match FieldRef::root(object).field("metadata")? {
                Some(place) => Ok((place.texts("annotations")?, place.texts("labels")?)),
                None => Ok(Default::default()),
            }
        };
        let (annotations, labels) = metadata(&change.new)?;
        let old = change.old.as_ref();
        let (old_annotations, old_labels) =
            old.and_then(|old| metadata(old).ok()).unwrap_or_default();
        let allowed = &self.rules.keys.allowed_roles;
        let mut keys = vec![allowed, ALLOWED_ROLES, PERMITTED, DEFAULT_ROLE];
        keys.sort_unstable();
        keys.dedup();
        let annotations = keys
            .into_iter()
            .filter(|key| annotations.get(key) != old_annotations.get(key))
            .map(|key| (format!("metadata.annotations[{key}]"), "role annotations"));
        let keys = self.rules.grants.namespace_label_keys();
        let labels = keys
            .filter(|key| *key != NAME_LABEL)
            .filter(|key| labels.get(key) != old_labels.get(key))
            .map(|key| (format!("metadata.labels[{key}]"), "labels that grants use"));
        if self.is_creation() {
            self.namespace_name_is_free(&change.new)?;
        }
        for (path, what) in annotations.chain(labels).collect::<Vec<_>>() {
            self.guard(
                &path,
                "namespace writers",
                &format!(
                    "only the configuration's namespaceWriters may set, change or remove {what} of \
                     namespaces; {ASK}"
                ),
            );
        }
        Ok(())
    }

    /// Checks the name of a new namespace. A grant may name a namespace that does not exist yet; a
    /// user who may create namespaces must not obtain the grant's roles by choosing that name.
    fn namespace_name_is_free(&mut self, namespace: &Node<'_>) -> Result<(), Malformed> {
        let Some(metadata) = FieldRef::root(namespace).field("metadata")? else {
            return Ok(());
        };
        let mut name = self.object_name(namespace)?;
        if name.is_empty()
            && let Some(start) = metadata.text("generateName")?
        {
            // The API server appends five random characters.
            name = format!("{start}xxxxx");
        }
        let labels = metadata
            .texts("labels")?
            .iter()
            .chain([(NAME_LABEL, name.as_str())])
            .collect();
        let mut grants = self.rules.grants.grants().iter();
        if !grants.any(|grant| grant.matches_namespace(&name, &labels)) {
            return Ok(());
        }
        let reason = format!(
            "a RoleGrant gives roles to a namespace of this name, so only the configuration's \
             namespaceWriters may create it; choose another name, or {ASK}"
        );
        let mode = self.rules.config.modes[LayerId::Grants];
        let fault = Violation::new(
            "metadata.name",
            LayerId::Grants,
            "namespace writers",
            &reason,
        );
        self.by_mode(mode, fault);
        Ok(())
    }

    /// Checks a change of a pod's status. A status update can change annotations and labels as
    /// well. A kubelet, or another user with the right to update statuses, must not change a role
    /// that way.
    pub(super) fn pod_status(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let metadata = |object| -> Result<(StringMap<'_>, StringMap<'_>), Malformed> {
            match FieldRef::root(object).field("metadata")? {
                Some(place) => Ok((place.texts("annotations")?, place.texts("labels")?)),
                None => Ok(Default::default()),
            }
        };
        let (annotations, labels) = metadata(&change.new)?;
        let (old_annotations, old_labels) = match &change.old {
            Some(old) => metadata(old)?,
            None => Default::default(),
        };
        let mut changed = self.changed_annotations(annotations, old_annotations);
        if let Some(key) = self.changed_label(labels, old_labels) {
            changed.push(format!("metadata.labels[{key}]"));
        }
        for path in changed {
            self.guard(
                &path,
                "pod status",
                "annotations and labels that determine a pod's role cannot be changed through its \
                 status; change the pod itself",
            );
        }
        Ok(())
    }

    /// Checks a binding, because the API server copies a binding's annotations and labels to its
    /// pod.
    pub(super) fn binding(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let metadata = FieldRef::root(&change.new).field("metadata")?;
        let (annotations, labels) = match &metadata {
            Some(place) => (place.texts("annotations")?, place.texts("labels")?),
            None => Default::default(),
        };
        let mut changed = self.changed_annotations(annotations, StringMap::default());
        if let Some(key) = self.changed_label(labels, StringMap::default()) {
            changed.push(format!("metadata.labels[{key}]"));
        }
        for path in changed {
            self.guard(
                &path,
                "binding",
                "a binding copies this to its pod, where it determines the role; set it on the pod \
                 itself",
            );
        }
        self.chosen_node(change)
    }

    /// Returns the paths of the annotations that decide about a pod's role and that differ.
    fn changed_annotations(&self, new: StringMap<'_>, old: StringMap<'_>) -> Vec<String> {
        let keys = self.rules.keys;
        [&*keys.role, &*keys.external_id, SESSION_NAME, MIRROR]
            .into_iter()
            .filter(|key| new.get(key) != old.get(key))
            .map(|key| format!("metadata.annotations[{key}]"))
            .collect()
    }

    pub(super) fn is_creation(&self) -> bool {
        self.review.operation() == Operation::Create
    }
}

/// Returns the `ruleWriters` of a RolegateConfig that is invalid as a whole; `None` if the field is
/// absent. A field that cannot be parsed allows only members of `system:masters`.
fn old_rule_writers(object: &RawValue) -> Option<Subjects> {
    let object: serde_json::Value = serde_json::from_str(object.get()).ok()?;
    let writers = object.pointer("/spec/ruleWriters")?.clone();
    let writers = serde_json::from_value::<rolegate_api::Writers>(writers);
    Some(writers.as_ref().map(Subjects::from).unwrap_or_default())
}

/// Returns an object's content without its status and without the metadata that the API server
/// maintains, such as `managedFields`.
fn content<'a>(object: &Node<'a>) -> Node<'a> {
    let mut content = object.clone();
    let Node::Map(fields) = &mut content else {
        return content;
    };
    fields.retain(|key| key != "status");
    if let Some(Node::Map(metadata)) = fields.get_mut("metadata") {
        metadata.retain(|key| matches!(key, "name" | "labels" | "annotations" | "ownerReferences"));
        let nothing_left = match metadata.get_mut("annotations") {
            Some(Node::Map(annotations)) => {
                annotations.retain(|key| key != STATUS_ANNOTATION);
                *annotations == Map::default()
            }
            _ => false,
        };
        if nothing_left {
            metadata.retain(|key| key != "annotations");
        }
    }
    content
}
