//! Roles that pods, templates, service accounts and credentials as Secrets name.

use std::collections::HashSet;

use rolegate_core::annotation::{AnnotationKeys, SESSION_NAME, WEB_IDENTITY_ROLE, normalized};
use rolegate_core::config::TemplateKind;
use rolegate_core::decision::{Decision, Denial};
use rolegate_core::layer::{Mode, Verdict};
use rolegate_core::workload::{Wish, Workload};

use super::{Change, GRANTS, Judge};
use crate::audience::is_for_aws;
use crate::json::Node;
use crate::outcome::{Fault, Unseen};
use crate::place::{Malformed, Place, Texts};
use crate::shape::{PodShape, ROLE_VARIABLE};

/// Stands for the service account of what all accounts of a namespace can use, such as a Secret;
/// no account can be called so.
const ANY_ACCOUNT: &str = "(any)";
const WEB_IDENTITY: &str = "web identity";
/// How often the rules are asked for one review: each of 256 templates may name two roles. An object
/// that names thousands would keep the gate from everybody else's.
const MAX_ASKED: usize = 512;

/// Where the parts of a wish were written, for faults.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// In annotations of a pod or template.
    Annotations(&'a PodShape<'a>),
    /// The role alone, at this path.
    Path(&'a str),
}

impl Source<'_> {
    /// The path of what `rule` refuses.
    fn path(self, rule: &str, keys: &AnnotationKeys) -> String {
        match (self, rule) {
            (Self::Path(path), _) => path.to_owned(),
            (Self::Annotations(shape), "external ID annotation") => {
                shape.annotation(&keys.external_id)
            }
            (Self::Annotations(shape), "session name annotation") => shape.annotation(SESSION_NAME),
            (Self::Annotations(shape), _) => shape.annotation(&keys.role),
        }
    }
}

impl Judge<'_> {
    fn shape<'p>(&self, place: &Place<'p>) -> Result<PodShape<'p>, Malformed> {
        PodShape::read(place, &self.rules.config.web_identity_audiences)
    }

    pub(super) fn pod(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let shape = self.shape(&Place::root(&change.new))?;
        let old = change.old.as_ref();
        let old = old.and_then(|old| self.shape(&Place::root(old)).ok());
        self.scheduling(&shape, old.as_ref());
        if old.is_some_and(|old| self.same_wish(&shape, &old)) {
            return Ok(());
        }
        // A kubelet mirrors static pods whatever we say, and they get no role whatever they are
        // given by default: only one that names a role is refused.
        let names_none = || {
            shape
                .wish(self.rules.keys)
                .role
                .is_none_or(|role| role.is_empty())
        };
        if shape.is_mirror() && names_none() && shape.variables.is_empty() {
            return Ok(());
        }
        self.pods(&shape, true)
    }

    /// A kind with one template.
    pub(super) fn template(&mut self, change: &Change<'_>, path: &[&str]) -> Result<(), Malformed> {
        let Some(template) = Place::root(&change.new).at(path)? else {
            return Ok(());
        };
        let old = change.old.as_ref();
        let old_place = old.and_then(|old| Place::root(old).at(path).ok().flatten());
        self.one_template(&template, old_place.as_ref(), old)
    }

    /// A custom resource.
    pub(super) fn custom(
        &mut self,
        change: &Change<'_>,
        kind: &TemplateKind,
    ) -> Result<(), Malformed> {
        let root = Place::root(&change.new);
        let old = change.old.as_ref();
        let old_root = old.map(Place::root);
        for path in &kind.paths {
            if &**path == "." {
                self.owner(&root, old_root.as_ref())?;
                continue;
            }
            let olds = old_root.as_ref().and_then(|old| old.walk(path).ok());
            for template in root.walk(path)? {
                let olds = olds.iter().flatten();
                let old_place = olds.clone().find(|place| place.is_beside(&template));
                self.one_template(&template, old_place, old)?;
            }
        }
        for path in &kind.metadata {
            let olds = old_root.as_ref().and_then(|old| old.walk(path).ok());
            for metadata in root.walk(path)? {
                let mut olds = olds.iter().flatten();
                let old_place = olds.find(|place| place.is_beside(&metadata));
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
        template: &Place<'_>,
        old_template: Option<&Place<'_>>,
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

    /// An object whose pods take over its metadata.
    fn owner(&mut self, root: &Place<'_>, old: Option<&Place<'_>>) -> Result<(), Malformed> {
        if old.is_some_and(|old| is_being_deleted(old.value)) {
            return Ok(());
        }
        let old_shape = old.and_then(|old| PodShape::read_owner(old).ok());
        self.taken_over(&PodShape::read_owner(root)?, old_shape.as_ref())
    }

    /// Metadata that pods take over.
    fn taken_over(
        &mut self,
        shape: &PodShape<'_>,
        old: Option<&PodShape<'_>>,
    ) -> Result<(), Malformed> {
        if old.is_some_and(|old| self.same_wish(shape, old)) {
            return Ok(());
        }
        // The account its pods run as may be set by its controller's configuration, or by another
        // object: whatever depends on it is judged when the pods are created.
        let account_is_known = shape.service_account.is_some();
        self.pods(shape, account_is_known)
    }

    /// Whether everything that decides about roles is as it was.
    fn same_wish(&self, new: &PodShape<'_>, old: &PodShape<'_>) -> bool {
        let keys = self.rules.keys;
        let values = |shape: &PodShape<'_>| {
            let variables = shape.variables.iter();
            variables
                .map(|variable| variable.value.map(str::to_owned))
                .collect::<Vec<_>>()
        };
        new.wish(keys) == old.wish(keys)
            && new.is_mirror() == old.is_mirror()
            && new.service_account == old.service_account
            && new.tokens == old.tokens
            && values(new) == values(old)
            && self.changed_label(new.labels, old.labels).is_none()
    }

    /// A pod label that grants look at and that differs.
    pub(super) fn changed_label(&self, new: Texts<'_>, old: Texts<'_>) -> Option<&str> {
        let grants = self.rules.grants.grants().iter();
        let mut keys = grants.flat_map(|grant| grant.pod_label_keys());
        keys.find(|key| new.get(key) != old.get(key))
    }

    /// Judges what a pod or the pods of a template ask for.
    fn pods(&mut self, shape: &PodShape<'_>, account_is_known: bool) -> Result<(), Malformed> {
        let keys = self.rules.keys;
        let namespace = self.namespace_name()?;
        let wish = shape.wish(keys);
        let asks = wish.role.as_ref().is_some_and(|role| !role.is_empty());
        let workload = shape.workload(namespace, self.review.name(), wish);
        self.ask(&workload, Source::Annotations(shape), account_is_known)?;
        self.web_identity(shape, &workload, asks)
    }

    /// Roles named by variables, and tokens for AWS.
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
                // The EKS webhook gives it to every container.
                Some(role) if !judged.insert(role) => {}
                Some(role) => {
                    asks = true;
                    let path = format!("{}.value", variable.path);
                    self.named_by(workload, role, &path)?;
                }
                None => {
                    let reason = format!(
                        "{ROLE_VARIABLE} comes from elsewhere, so the role cannot be judged; write \
                         its ARN as the variable's value"
                    );
                    self.unnamed(&variable.path, &reason);
                }
            }
        }
        if let (false, Some(token)) = (asks, shape.tokens.first()) {
            let reason = format!(
                "a token that AWS takes for credentials needs the role named, so that it can be \
                 judged; set {ROLE_VARIABLE} in the container to a role that a RoleGrant gives to \
                 service account {} of namespace {}, or ask your cluster's administrator for one",
                workload.service_account, workload.namespace
            );
            self.unnamed(token, &reason);
        }
        Ok(())
    }

    /// Refuses what would give a role that is not named so that it could be judged, where grants
    /// count.
    fn unnamed(&mut self, path: &str, reason: &str) {
        if let Some(missing) = self.rules.rules.missing.clone() {
            let fault = Fault::new(path, "rules", "rules are missing", &missing);
            return self.outcome.fault(fault);
        }
        let mode = self.rules.config.modes.grants;
        self.by_mode(mode, Fault::new(path, GRANTS, WEB_IDENTITY, reason));
    }

    /// Judges a role that is named by something else than a pod's annotation.
    fn named_by(&mut self, workload: &Workload, role: &str, path: &str) -> Result<(), Malformed> {
        let workload = Workload {
            wish: Wish::for_role(role),
            ..workload.clone()
        };
        self.ask(&workload, Source::Path(path), true)
    }

    /// A service account names the role of its pods' web identity.
    pub(super) fn service_account(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let annotations = |object| -> Result<Texts<'_>, Malformed> {
            match Place::root(object).field("metadata")? {
                Some(metadata) => metadata.texts("annotations"),
                None => Ok(Texts::default()),
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

    /// Credentials as a Secret, which every account of the namespace may be let to read.
    pub(super) fn aws_iam_role(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let reference = |object| match Place::root(object).field("spec")? {
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
        let root = Place::root(object);
        // At a creation the name may be in the object alone.
        if account.is_empty()
            && let Some(metadata) = root.field("metadata")?
        {
            account = metadata.text("name")?.unwrap_or_default().to_owned();
        }
        let shape = PodShape::of_account(&account);
        let workload = shape.workload(self.namespace_name()?, "", Wish::default());
        self.named_by(&workload, role, path)
    }

    /// A token for AWS names no role, so where grants count only kubelets get one, for pods that
    /// were let through.
    pub(super) fn token_request(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let Some(spec) = Place::root(&change.new).field("spec")? else {
            return Ok(());
        };
        let others = &self.rules.config.web_identity_audiences;
        let mut found = None;
        for audience in spec.list("audiences")? {
            let text = audience.value.as_text();
            let text = text.ok_or_else(|| audience.malformed("a string"))?;
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
            "a token that AWS takes for credentials names no role that could be judged; run a pod \
             whose {ROLE_VARIABLE} or role annotation names one that a RoleGrant covers, or ask \
             your cluster's administrator"
        );
        self.unnamed(&path, &reason);
        Ok(())
    }

    /// Asks the rules, as the doors do.
    fn ask(
        &mut self,
        workload: &Workload,
        source: Source<'_>,
        account_is_known: bool,
    ) -> Result<(), Malformed> {
        self.asked += 1;
        if self.asked > MAX_ASKED {
            return Err(Malformed {
                path: String::new(),
                wanted: "an object that names at most 512 roles",
            });
        }
        let explanation = self.rules.rules.explain(workload, self.now);
        let counts = |layer| account_is_known || layer != GRANTS;
        let keys = self.rules.keys;
        let is_default = workload.wish.role.is_none();
        let fault = |denial: &Denial| fault(denial, is_default, source, keys);
        match explanation.decision {
            Decision::NoRole => {}
            Decision::Undecided => {
                self.outcome.undecided = Some(match self.rules.rules.unseen {
                    Some(sentence) => Unseen::Rules(sentence),
                    None => Unseen::Namespace(workload.namespace.clone()),
                });
            }
            Decision::Allow { audited, .. } => {
                for denial in audited.iter().filter(|denial| counts(denial.layer)) {
                    self.outcome.warning(fault(denial));
                }
            }
            Decision::Deny(denial) => {
                if denial.layer == "rules" {
                    self.outcome.fault(fault(&denial));
                } else if counts(denial.layer) {
                    self.refuse(fault(&denial));
                }
                // What comes before the layers would drown in what they say beside it.
                if matches!(denial.layer, "own-role" | "rules") || workload.mirror {
                    return Ok(());
                }
                for judgement in explanation.judgements {
                    let Verdict::Deny {
                        rule,
                        reason,
                        passing,
                    } = judgement.verdict
                    else {
                        continue;
                    };
                    if judgement.layer == denial.layer || !counts(judgement.layer) {
                        continue;
                    }
                    let other = Denial {
                        role: denial.role.clone(),
                        layer: judgement.layer,
                        rule,
                        reason,
                        passing,
                    };
                    let mode: Mode = judgement.mode;
                    self.by_mode(mode, fault(&other));
                }
            }
        }
        Ok(())
    }
}

fn is_being_deleted(object: &Node<'_>) -> bool {
    let place = Place::root(object).at(&["metadata", "deletionTimestamp"]);
    matches!(place, Ok(Some(_)))
}

fn fault(denial: &Denial, is_default: bool, source: Source<'_>, keys: &AnnotationKeys) -> Fault {
    let path = source.path(&denial.rule, keys);
    let default = if is_default { ", the default," } else { "" };
    let whom = match denial.layer {
        "namespace" => "; ask whoever administers the namespace's annotations",
        _ => "",
    };
    let reason = format!(
        "role {}{default} is refused: {}{whom}",
        denial.role, denial.reason
    );
    Fault::new(&path, denial.layer, &denial.rule, &reason)
}
