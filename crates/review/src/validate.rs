//! The validator: evaluates a review with the rules that agents use, and protects the objects that
//! hold rules.
//!
//! An update is denied only for what it changes, so a role that was revoked later never blocks a
//! finalizer, a scale or a deletion.

mod network;
mod protected_objects;
mod role_requests;
mod scheduling;
mod validity;

use jiff::Timestamp;
pub use protected_objects::CONTROLLERS;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::decision::RuleSet;
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::service_account::ServiceAccountAnnotations;
pub use scheduling::STARTUP_TAINTS;
use serde_json::value::RawValue;

use crate::admission_review::{Operation, Review};
use crate::field_path::Malformed;
use crate::json::{self, Node};
use crate::outcome::{Outcome, Undecided, Violation, ViolationSource};
use crate::policies::ReviewPolicies;
use crate::target::ReviewTarget;

/// The rules of the validator.
#[derive(Clone, Copy)]
pub struct ValidationRules<'a> {
    /// The rules without the layer of policies, which evaluate whole reviews.
    pub rules: &'a RuleSet,
    /// The configuration.
    pub config: &'a RuleConfig,
    /// The grants, for the labels that they select by.
    pub grants: &'a GrantsLayer,
    /// The annotation keys.
    pub keys: &'a AnnotationKeys,
    /// The policies, if any.
    pub policies: Option<&'a dyn ReviewPolicies>,
    /// The service accounts, if they are watched.
    pub accounts: Option<&'a dyn ServiceAccounts>,
}

/// The annotations of service accounts, which name the roles of container credentials.
pub trait ServiceAccounts {
    /// Returns the annotations of a service account that concern AWS. Empty if the service account
    /// is not known.
    fn annotations(&self, namespace: &str, name: &str) -> ServiceAccountAnnotations;
}

/// Validates a review. Pure. If [`Outcome::undecided`] is set, it must be validated again once that
/// dependency is synced.
pub fn validate(rules: &ValidationRules<'_>, review: &Review<'_>, now: Timestamp) -> Outcome {
    let mut validate = Validator {
        rules: *rules,
        review,
        now,
        outcome: Outcome::default(),
        asked: 0,
    };
    let subject = ReviewTarget::of(review, rules.config);
    let exempt = |namespace: &str| rules.config.exempt_namespaces.contains(namespace);
    if subject.can_be_exempt() && exempt(review.namespace()) {
        return validate.outcome;
    }
    if let Err(malformed) = validate.subject(subject) {
        validate.malformed(&malformed);
    }
    let own_name = matches!(subject, ReviewTarget::Namespace) && exempt(review.name());
    if !own_name && !exempt(review.namespace()) {
        validate.policies(subject);
    }
    validate.outcome
}

/// The validation of one review.
struct Validator<'a> {
    rules: ValidationRules<'a>,
    review: &'a Review<'a>,
    now: Timestamp,
    outcome: Outcome,
    /// The number of evaluations so far.
    asked: usize,
}

/// The new and the existing object.
struct Change<'a> {
    new: Node<'a>,
    old: Option<Node<'a>>,
}

impl<'a> Validator<'a> {
    fn subject(&mut self, subject: ReviewTarget<'_>) -> Result<(), Malformed> {
        let operation = self.review.operation();
        if operation == Operation::Delete {
            return self.deletion(subject);
        }
        if operation == Operation::Connect || subject == ReviewTarget::Other {
            return Ok(());
        }
        let change = self.change()?;
        match subject {
            ReviewTarget::Pod => self.pod(&change),
            ReviewTarget::PodStatus => self.pod_status(&change),
            ReviewTarget::Binding => self.binding(&change),
            ReviewTarget::Template(path) => self.template(&change, path),
            ReviewTarget::Custom(kind) => self.custom(&change, kind),
            ReviewTarget::ServiceAccount => self.service_account(&change),
            ReviewTarget::TokenRequest => self.token_request(&change),
            ReviewTarget::AwsIamRole => self.aws_iam_role(&change),
            ReviewTarget::Namespace => self.namespace(&change),
            ReviewTarget::Service => self.service(&change),
            ReviewTarget::Rules => self.rule_object(&change),
            ReviewTarget::ConfigMap => self.config_map(&change),
            ReviewTarget::Other => Ok(()),
        }
    }

    /// Parses the objects. An existing object that cannot be parsed is ignored, so that the whole
    /// new one is validated.
    fn change(&self) -> Result<Change<'a>, Malformed> {
        let missing = Malformed {
            path: String::new(),
            wanted: "an object",
        };
        let new = self.review.object().ok_or(missing)?;
        let new = read(new)?;
        let old = match self.review.operation() {
            Operation::Update => self.review.old_object(),
            _ => None,
        };
        Ok(Change {
            new,
            old: old.and_then(|old| json::parse(old).ok()),
        })
    }

    /// Returns the namespace, which every request about a namespaced object has.
    fn namespace_name(&self) -> Result<&'a str, Malformed> {
        let namespace = self.review.namespace();
        (!namespace.is_empty())
            .then_some(namespace)
            .ok_or(Malformed {
                path: "metadata.namespace".into(),
                wanted: "the name of a namespace",
            })
    }

    fn malformed(&mut self, malformed: &Malformed) {
        self.refuse(Violation::new(
            &malformed.path,
            ViolationSource::REQUEST,
            "malformed object",
            &format!("this must be {}", malformed.wanted),
        ));
    }

    /// Denies a change of a protected object.
    fn guard(&mut self, path: &str, rule: &str, reason: &str) {
        self.refuse(Violation::new(
            path,
            ViolationSource::ProtectedObject,
            rule,
            reason,
        ));
    }

    /// Denies a request that no layer decides about, or warns while no layer is enforced.
    fn refuse(&mut self, violation: Violation) {
        self.by_mode(self.guards(), violation);
    }

    /// Returns the mode of the webhook's own rules. While the configuration is missing or invalid,
    /// they are enforced, because the configuration may have enforced them.
    fn guards(&self) -> Mode {
        match &self.rules.rules.missing {
            Some(_) => Mode::Enforce,
            None => self.rules.config.guards(),
        }
    }

    /// Denies or warns, by the mode of the layer.
    fn by_mode(&mut self, mode: Mode, violation: Violation) {
        match mode {
            Mode::Enforce => self.outcome.violation(violation),
            Mode::Audit => self.outcome.warning(violation),
            Mode::Off => {}
        }
    }

    /// Returns `true` if an update does not change the fields that policies evaluate: a policy
    /// added later must not block finalizers, or controllers that scale existing objects. Other
    /// users' changes of replicas are validated, since a policy may limit them; the subresource
    /// `scale` is not.
    fn is_unchanged(&self) -> bool {
        if self.review.operation() != Operation::Update {
            return false;
        }
        let substance = |object: Option<&'a RawValue>| {
            let mut object = read(object?).ok()?;
            keep_substance(&mut object, self.is_controller());
            Some(object)
        };
        let new = substance(self.review.object());
        new.is_some() && new == substance(self.review.old_object())
    }

    /// Evaluates the policies. They do not see objects that hold rules, so that a policy that
    /// denies everything can be fixed, nor subresources that they were not written for.
    fn policies(&mut self, subject: ReviewTarget<'_>) {
        let mode = self.rules.config.modes[LayerId::Rego];
        let review = self.review;
        let asked_about = matches!(review.operation(), Operation::Create | Operation::Update)
            && matches!(review.subresource(), "" | "ephemeralcontainers")
            && subject != ReviewTarget::Rules
            && !(subject == ReviewTarget::ConfigMap && self.in_policy_namespace());
        let Some(policies) = self.rules.policies else {
            return;
        };
        if mode == Mode::Off || !asked_about || self.outcome.undecided.is_some() {
            return;
        }
        if self.is_unchanged() {
            return;
        }
        // The data that they read may not be synced yet.
        if let (Mode::Enforce, Some(part)) = (mode, self.rules.rules.not_synced) {
            self.outcome.undecided = Some(Undecided::Rules(part));
            return;
        }
        let findings = policies.evaluate_review(review.body(), self.now);
        self.outcome.asked = findings.asked;
        for finding in findings.denials {
            let violation = Violation::new("", LayerId::Rego, &finding.policy, &finding.message);
            self.by_mode(mode, violation);
        }
    }
}

/// Removes the fields whose changes policies are not evaluated for: the status, the finalizers, and
/// the metadata that the API server maintains. If the user is a controller of the control plane
/// (`controller`), also removes owner references and `spec.replicas`.
fn keep_substance(object: &mut Node<'_>, controller: bool) {
    let Node::Map(fields) = object else { return };
    fields.retain(|key| key != "status");
    if let Some(Node::Map(metadata)) = fields.get_mut("metadata") {
        metadata.retain(|key| match key {
            "finalizers" | "resourceVersion" | "generation" => false,
            "deletionTimestamp" | "deletionGracePeriodSeconds" => false,
            "ownerReferences" => !controller,
            _ => true,
        });
    }
    if let (true, Some(Node::Map(spec))) = (controller, fields.get_mut("spec")) {
        spec.retain(|key| key != "replicas");
    }
}

/// Parses a value that must be an object.
fn read(raw: &RawValue) -> Result<Node<'_>, Malformed> {
    let malformed = |wanted| Malformed {
        path: String::new(),
        wanted,
    };
    let value = json::parse(raw)
        .map_err(|_| malformed("JSON of at most 128 levels without duplicate keys"))?;
    match value {
        Node::Map(_) => Ok(value),
        _ => Err(malformed("an object")),
    }
}
