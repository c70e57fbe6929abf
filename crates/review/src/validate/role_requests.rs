//! Validates the roles that pods, templates, service accounts and `AWSIAMRole`s name.

use std::collections::HashSet;

use rolegate_core::annotation::{AnnotationKeys, SESSION_NAME, WEB_IDENTITY_ROLE, normalized};
use rolegate_core::config::TemplateKind;
use rolegate_core::decision::{Decision, Denial, DenialSource, RequestField};
use rolegate_core::layer::{LayerId, Mode, Verdict};
use rolegate_core::service_account::CONTAINER_CREDENTIALS_AUDIENCE;
use rolegate_core::workload::{RoleRequest, Workload};

use super::{Change, Validator};
use crate::audience::is_for_aws;
use crate::field_path::{FieldRef, Malformed, StringMap};
use crate::json::Node;
use crate::outcome::{Undecided, Violation, ViolationSource};
use crate::pod_template::{PodShape, PodToken, ROLE_VARIABLE};

/// Stands for the service account of objects that every account of a namespace can use, such as a
/// Secret. No account can have this name.
const ANY_ACCOUNT: &str = "(any)";
const WEB_IDENTITY: &str = "web identity";
/// Maximum number of evaluations for one review: each of 256 templates may name two roles. An
/// object that names thousands would delay the reviews of others.
const MAX_EVALUATIONS: usize = 512;

/// The source of the parts of a role request, for violations.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// Annotations of a pod or template.
    Annotations(&'a PodShape<'a>),
    /// This path, which names the role only.
    Path(&'a str),
}

impl Source<'_> {
    /// Returns the path of a part of the request.
    fn path(self, field: RequestField, keys: &AnnotationKeys) -> String {
        match (self, field) {
            (Self::Path(path), _) => path.to_owned(),
            (Self::Annotations(shape), RequestField::ExternalId) => {
                shape.annotation(&keys.external_id)
            }
            (Self::Annotations(shape), RequestField::SessionName) => shape.annotation(SESSION_NAME),
            (Self::Annotations(shape), RequestField::Role) => shape.annotation(&keys.role),
        }
    }
}

impl Validator<'_> {
    fn shape<'p>(&self, place: &FieldRef<'p>) -> Result<PodShape<'p>, Malformed> {
        PodShape::read(place, &self.rules.config.web_identity_audiences)
    }

    pub(super) fn pod(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let shape = self.shape(&FieldRef::root(&change.new))?;
        let old = change.old.as_ref();
        let old = old.and_then(|old| self.shape(&FieldRef::root(old)).ok());
        self.scheduling(&shape, old.as_ref());
        if old.is_some_and(|old| self.same_request(&shape, &old)) {
            return Ok(());
        }
        // A kubelet creates mirror pods regardless, and they never get a role, not even a default
        // one, so only a mirror pod that names a role is denied.
        let names_none = || {
            shape
                .role_request(self.rules.keys)
                .role
                .is_none_or(|role| role.is_empty())
        };
        if shape.is_mirror() && names_none() && shape.variables.is_empty() {
            return Ok(());
        }
        self.pods(&shape, true)
    }

    /// Validates a kind with one template.
    pub(super) fn template(&mut self, change: &Change<'_>, path: &[&str]) -> Result<(), Malformed> {
        let Some(template) = FieldRef::root(&change.new).at(path)? else {
            return Ok(());
        };
        let old = change.old.as_ref();
        let old_place = old.and_then(|old| FieldRef::root(old).at(path).ok().flatten());
        self.one_template(&template, old_place.as_ref(), old)
    }

    /// Validates a custom resource.
    pub(super) fn custom(
        &mut self,
        change: &Change<'_>,
        kind: &TemplateKind,
    ) -> Result<(), Malformed> {
        let root = FieldRef::root(&change.new);
        let old = change.old.as_ref();
        let old_root = old.map(FieldRef::root);
        for path in &kind.paths {
            if &**path == "." {
                self.owner(&root, old_root.as_ref())?;
                continue;
            }
            let olds = old_root.as_ref().and_then(|old| old.walk(path).ok());
            for template in root.walk(path)? {
                let olds = olds.iter().flatten();
                let old_place = olds.clone().find(|place| place.has_same_path(&template));
                self.one_template(&template, old_place, old)?;
            }
        }
        for path in &kind.metadata {
            let olds = old_root.as_ref().and_then(|old| old.walk(path).ok());
            for metadata in root.walk(path)? {
                let mut olds = olds.iter().flatten();
                let old_place = olds.find(|place| place.has_same_path(&metadata));
                if !old.is_some_and(is_being_deleted) {
                    let old_shape = old_place.and_then(|old| PodShape::read_metadata(old).ok());
                    self.taken_over(&PodShape::read_metadata(&metadata)?, old_shape.as_ref())?;
                }
            }
        }
        Ok(())
    }

    fn one_template(
        &mut self,
        template: &FieldRef<'_>,
        old_template: Option<&FieldRef<'_>>,
        old: Option<&Node<'_>>,
    ) -> Result<(), Malformed> {
        if old_template.is_some_and(|old| old.value == template.value)
            || old.is_some_and(is_being_deleted)
        {
            return Ok(());
        }
        let shape = self.shape(template)?;
        let old_shape = old_template.and_then(|old| self.shape(old).ok());
        self.scheduling(&shape, old_shape.as_ref());
        self.pods(&shape, true)
    }

    /// Validates an object whose metadata is copied to its pods.
    fn owner(&mut self, root: &FieldRef<'_>, old: Option<&FieldRef<'_>>) -> Result<(), Malformed> {
        if old.is_some_and(|old| is_being_deleted(old.value)) {
            return Ok(());
        }
        let old_shape = old.and_then(|old| PodShape::read_owner(old).ok());
        self.taken_over(&PodShape::read_owner(root)?, old_shape.as_ref())
    }

    /// Validates metadata that is copied to pods.
    fn taken_over(
        &mut self,
        shape: &PodShape<'_>,
        old: Option<&PodShape<'_>>,
    ) -> Result<(), Malformed> {
        if old.is_some_and(|old| self.same_request(shape, old)) {
            return Ok(());
        }
        // The service account of its pods may be set by its controller's configuration, or by
        // another object, so decisions that depend on it are made when the pods are created.
        let account_is_known = shape.service_account.is_some();
        self.pods(shape, account_is_known)
    }

    /// Returns `true` if nothing that decides about roles has changed.
    fn same_request(&self, new: &PodShape<'_>, old: &PodShape<'_>) -> bool {
        let keys = self.rules.keys;
        let values = |shape: &PodShape<'_>| {
            let variables = shape.variables.iter();
            variables
                .map(|variable| variable.value.map(str::to_owned))
                .collect::<Vec<_>>()
        };
        new.role_request(keys) == old.role_request(keys)
            && new.is_mirror() == old.is_mirror()
            && new.service_account == old.service_account
            && new.tokens == old.tokens
            && values(new) == values(old)
            && self.changed_label(new.labels, old.labels).is_none()
    }

    /// Returns a changed pod label that grants select by.
    pub(super) fn changed_label(&self, new: StringMap<'_>, old: StringMap<'_>) -> Option<&str> {
        let grants = self.rules.grants.grants().iter();
        let mut keys = grants.flat_map(|grant| grant.pod_label_keys());
        keys.find(|key| new.get(key) != old.get(key))
    }

    /// Validates the role requests of a pod, or of the pods of a template.
    fn pods(&mut self, shape: &PodShape<'_>, account_is_known: bool) -> Result<(), Malformed> {
        let keys = self.rules.keys;
        let namespace = self.namespace_name()?;
        let role_request = shape.role_request(keys);
        let asks = role_request
            .role
            .as_ref()
            .is_some_and(|role| !role.is_empty());
        let workload = shape.workload(namespace, self.review.name(), role_request);
        self.ask(&workload, Source::Annotations(shape), account_is_known)?;
        self.web_identity(shape, &workload, asks)
    }

    /// Validates roles named by variables, and tokens for AWS.
    fn web_identity(
        &mut self,
        shape: &PodShape<'_>,
        workload: &Workload,
        mut asks: bool,
    ) -> Result<(), Malformed> {
        let mut judged = HashSet::new();
        for variable in &shape.variables {
            if self.outcome.is_full() {
                return Ok(());
            }
            match variable.value.map(normalized) {
                Some("") => {}
                // The EKS webhook adds the variable to every container.
                Some(role) if !judged.insert(role) => {}
                Some(role) => {
                    asks = true;
                    let path = format!("{}.value", variable.path);
                    self.named_by(workload, role, &path)?;
                }
                None => {
                    let reason = format!(
                        "{ROLE_VARIABLE} has no literal value, so the role cannot be evaluated; \
                         set the role's ARN as its value"
                    );
                    self.unnamed(&variable.path, &reason);
                }
            }
        }
        if let (false, Some(token)) = (asks, shape.tokens.first()) {
            if self.container_credentials(shape, workload)? {
                return Ok(());
            }
            let reason = format!(
                "a pod with a token that AWS accepts for credentials requires a named role, so that \
                 the role can be evaluated; set {ROLE_VARIABLE} in the container to a role that a \
                 RoleGrant gives to service account {} of namespace {}, or ask your cluster's \
                 administrator for a grant",
                workload.service_account, workload.namespace
            );
            self.unnamed(&token.path, &reason);
        }
        Ok(())
    }

    /// Validates the role that the container credentials endpoint serves for a pod's tokens: that of
    /// its service account. Returns false if a token is for another audience, whose role the pod
    /// chooses, or if the service account has no role.
    fn container_credentials(
        &mut self,
        shape: &PodShape<'_>,
        workload: &Workload,
    ) -> Result<bool, Malformed> {
        let is_for_endpoint =
            |token: &PodToken<'_>| token.audience == CONTAINER_CREDENTIALS_AUDIENCE;
        if !shape.tokens.iter().all(is_for_endpoint) {
            return Ok(false);
        }
        let (namespace, account) = (&workload.namespace, &workload.service_account);
        let accounts = self.rules.accounts;
        let annotations = accounts.map(|accounts| accounts.annotations(namespace, account));
        let annotations = annotations.unwrap_or_default();
        let rules = self.rules.rules;
        let assigned = rules.assigned_role(namespace, account, &annotations, None);
        // An annotation that is not a role gives none.
        let Ok(Some(assigned)) = assigned else {
            return Ok(false);
        };
        let path = shape.tokens.first().map_or("", |token| &*token.path);
        self.ask(&assigned.request(workload), Source::Path(path), true)?;
        if let Some(target) = assigned.target_request(workload) {
            self.ask(&target, Source::Path(path), true)?;
        }
        Ok(true)
    }

    /// Reports a request whose role cannot be determined, and so cannot be evaluated. It is denied
    /// if layer `grants` is enforced, or if rules are missing.
    fn unnamed(&mut self, path: &str, reason: &str) {
        if let Some(missing) = self.rules.rules.missing.clone() {
            let violation =
                Violation::new(path, ViolationSource::RULES, "rules are missing", &missing);
            return self.outcome.violation(violation);
        }
        let mode = self.rules.config.modes[LayerId::Grants];
        self.by_mode(
            mode,
            Violation::new(path, LayerId::Grants, WEB_IDENTITY, reason),
        );
    }

    /// Evaluates a role that is named by something other than a pod's annotation.
    fn named_by(&mut self, workload: &Workload, role: &str, path: &str) -> Result<(), Malformed> {
        let workload = Workload {
            role_request: RoleRequest::for_role(role),
            ..workload.clone()
        };
        self.ask(&workload, Source::Path(path), true)
    }

    /// Validates a service account, which names the role of its pods' web identity.
    pub(super) fn service_account(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let annotations = |object| -> Result<StringMap<'_>, Malformed> {
            match FieldRef::root(object).field("metadata")? {
                Some(metadata) => metadata.texts("annotations"),
                None => Ok(StringMap::default()),
            }
        };
        let role = annotations(&change.new)?.get(WEB_IDENTITY_ROLE);
        let old = change.old.as_ref();
        let old = old.and_then(|old| annotations(old).ok()?.get(WEB_IDENTITY_ROLE));
        let Some(role) = role.map(normalized).filter(|role| !role.is_empty()) else {
            return Ok(());
        };
        if old.map(normalized) == Some(role) {
            return Ok(());
        }
        let path = format!("metadata.annotations[{WEB_IDENTITY_ROLE}]");
        self.role_of_account(&change.new, self.review.name().to_owned(), role, &path)
    }

    /// Validates an `AWSIAMRole`. RBAC may let every account of the namespace read its Secret.
    pub(super) fn aws_iam_role(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let reference = |object| match FieldRef::root(object).field("spec")? {
            Some(spec) => spec.text("roleReference"),
            None => Ok(None),
        };
        let old = change.old.as_ref();
        let old_role = old.and_then(|old| reference(old).ok().flatten());
        match reference(&change.new)?.map(normalized) {
            Some(role) if !role.is_empty() && old_role.map(normalized) != Some(role) => {
                let account = ANY_ACCOUNT.to_owned();
                self.role_of_account(&change.new, account, role, "spec.roleReference")
            }
            _ => Ok(()),
        }
    }

    fn role_of_account(
        &mut self,
        object: &Node<'_>,
        mut account: String,
        role: &str,
        path: &str,
    ) -> Result<(), Malformed> {
        let root = FieldRef::root(object);
        // At a creation the name may be in the object alone.
        if account.is_empty()
            && let Some(metadata) = root.field("metadata")?
        {
            account = metadata.text("name")?.unwrap_or_default().to_owned();
        }
        let shape = PodShape::of_account(&account);
        let workload = shape.workload(self.namespace_name()?, "", RoleRequest::default());
        self.named_by(&workload, role, path)
    }

    /// Validates a token request. A token for AWS names no role, so where grants apply only
    /// kubelets may request one, for pods that were admitted.
    pub(super) fn token_request(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let Some(spec) = FieldRef::root(&change.new).field("spec")? else {
            return Ok(());
        };
        let others = &self.rules.config.web_identity_audiences;
        let mut found = None;
        for audience in spec.list("audiences")? {
            let text = audience
                .value
                .as_text()
                .ok_or_else(|| audience.malformed("a string"))?;
            if is_for_aws(text, others) {
                found = Some(audience.path());
            }
        }
        let Some(path) = found else {
            return Ok(());
        };
        let bound_to = match spec.field("boundObjectRef")? {
            Some(bound) => bound.text("kind")?,
            None => None,
        };
        let kubelet = self.review.user().is_in("system:nodes") && bound_to == Some("Pod");
        if kubelet || self.is_rule_writer() {
            return Ok(());
        }
        let reason = format!(
            "AWS accepts the requested token for credentials, but a token request names no role \
             that could be evaluated; run a pod whose {ROLE_VARIABLE} or role annotation names a \
             role that a RoleGrant covers, or ask your cluster's administrator"
        );
        self.unnamed(&path, &reason);
        Ok(())
    }

    /// Evaluates the rules, as agents do.
    fn ask(
        &mut self,
        workload: &Workload,
        source: Source<'_>,
        account_is_known: bool,
    ) -> Result<(), Malformed> {
        self.asked += 1;
        if self.asked > MAX_EVALUATIONS {
            return Err(Malformed {
                path: String::new(),
                wanted: "an object that names at most 512 roles",
            });
        }
        let explanation = self.rules.rules.explain(workload, self.now);
        let counts = |source| account_is_known || source != LayerId::Grants.into();
        let keys = self.rules.keys;
        let is_default = workload.role_request.role.is_none();
        let violation = |denial: &Denial| violation(denial, is_default, source, keys);
        match explanation.decision {
            Decision::NoRole => {}
            Decision::Pending => match self.rules.rules.not_synced {
                Some(part) => self.outcome.undecided = Some(Undecided::Rules(part)),
                None if self.guards() == Mode::Enforce => {
                    let namespace = workload.namespace.clone();
                    self.outcome.undecided = Some(Undecided::Namespace(namespace));
                }
                // While nothing is enforced, a watch that lags must not refuse anything.
                None => self.outcome.warning(Violation::new(
                    "",
                    ViolationSource::REQUEST,
                    "namespace not loaded",
                    "the namespace has not been seen yet, so the role was not checked",
                )),
            },
            Decision::Allow { audited, .. } => {
                for denial in audited.iter().filter(|denial| counts(denial.denied_by)) {
                    self.outcome.warning(violation(denial));
                }
            }
            Decision::Deny(denial) => {
                if denial.denied_by == DenialSource::MissingRules {
                    self.outcome.violation(violation(&denial));
                } else if counts(denial.denied_by) {
                    self.refuse(violation(&denial));
                }
                // Denials that precede the layers would be lost among theirs.
                let precedes_layers = matches!(
                    denial.denied_by,
                    DenialSource::ReservedRole | DenialSource::MissingRules
                );
                if precedes_layers || workload.mirror {
                    return Ok(());
                }
                for result in explanation.layer_results {
                    let Verdict::Deny { rule, reason, .. } = result.verdict else {
                        continue;
                    };
                    let source = DenialSource::Layer(result.layer);
                    if source == denial.denied_by || !counts(source) {
                        continue;
                    }
                    let other = Denial::new(&denial.role, source, rule, reason);
                    let mode: Mode = result.mode;
                    self.by_mode(mode, violation(&other));
                }
            }
        }
        Ok(())
    }
}

fn is_being_deleted(object: &Node<'_>) -> bool {
    let place = FieldRef::root(object).at(&["metadata", "deletionTimestamp"]);
    matches!(place, Ok(Some(_)))
}

fn violation(
    denial: &Denial,
    is_default: bool,
    source: Source<'_>,
    keys: &AnnotationKeys,
) -> Violation {
    let path = source.path(denial.field, keys);
    let default = if is_default { ", the default," } else { "" };
    let whom = match denial.denied_by {
        DenialSource::Layer(LayerId::Namespace) => "; ask the owner of the namespace's annotations",
        _ => "",
    };
    let reason = format!(
        "role {}{default} is denied: {}{whom}",
        denial.role, denial.reason
    );
    Violation::new(&path, denial.denied_by, &denial.rule, &reason)
}
