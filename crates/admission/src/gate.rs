//! The gate: judges a review by the rules that the doors decide by, and guards the rules.
//!
//! An update is judged by what it changes of the wish, so that a right that was taken away never
//! blocks a finalizer, a scale or a deletion.

mod guard;
mod network;
mod scheduling;
mod validity;
mod wish;

pub use guard::CONTROLLERS;
use jiff::Timestamp;
use rolegate_core::annotation::AnnotationKeys;
use rolegate_core::config::RuleConfig;
use rolegate_core::decision::RuleSet;
use rolegate_core::layer::Mode;
use rolegate_core::layer::grants::GrantsLayer;
pub use scheduling::STARTUP_TAINTS;
use serde_json::value::RawValue;

use crate::json::{self, Node};
use crate::kinds::Subject;
use crate::outcome::{Fault, Outcome, Unseen};
use crate::place::Malformed;
use crate::policies::ReviewPolicies;
use crate::review::{Operation, Review};

/// The layer of what the gate itself protects, in faults.
const GUARD: &str = "guard";
/// The layer of grants, in faults.
const GRANTS: &str = "grants";
/// The layer of policies, in faults.
const REGO: &str = "rego";

/// What reviews are judged by.
#[derive(Clone, Copy)]
pub struct GateRules<'a> {
    /// The rules, without the layer of policies: those are asked about whole reviews.
    pub rules: &'a RuleSet,
    /// The configuration.
    pub config: &'a RuleConfig,
    /// The grants, for the labels that they look at.
    pub grants: &'a GrantsLayer,
    /// The annotations' keys.
    pub keys: &'a AnnotationKeys,
    /// The policies; `None` where there are none.
    pub policies: Option<&'a dyn ReviewPolicies>,
}

/// Judges a review; pure. Where [`Outcome::undecided`] names something, it is to be judged again
/// when that is known.
pub fn judge(rules: &GateRules<'_>, review: &Review<'_>, now: Timestamp) -> Outcome {
    let mut judge = Judge {
        rules: *rules,
        review,
        now,
        outcome: Outcome::default(),
        asked: 0,
    };
    let subject = Subject::of(review, rules.config);
    let spared = |namespace: &str| rules.config.spared_namespaces.contains(namespace);
    if subject.can_be_spared() && spared(review.namespace()) {
        return judge.outcome;
    }
    if let Err(malformed) = judge.subject(subject) {
        judge.malformed(&malformed);
    }
    let own_name = matches!(subject, Subject::Namespace) && spared(review.name());
    if !own_name && !spared(review.namespace()) {
        judge.policies(subject);
    }
    judge.outcome
}

/// One review being judged.
struct Judge<'a> {
    rules: GateRules<'a>,
    review: &'a Review<'a>,
    now: Timestamp,
    outcome: Outcome,
    /// How often the rules were asked.
    asked: usize,
}

/// The object as it would be and as it is.
struct Change<'a> {
    new: Node<'a>,
    old: Option<Node<'a>>,
}

impl<'a> Judge<'a> {
    fn subject(&mut self, subject: Subject<'_>) -> Result<(), Malformed> {
        let operation = self.review.operation();
        if operation == Operation::Delete {
            return self.deletion(subject);
        }
        if operation == Operation::Connect || subject == Subject::Other {
            return Ok(());
        }
        let change = self.change()?;
        match subject {
            Subject::Pod => self.pod(&change),
            Subject::PodStatus => self.pod_status(&change),
            Subject::Binding => self.binding(&change),
            Subject::Template(path) => self.template(&change, path),
            Subject::Custom(kind) => self.custom(&change, kind),
            Subject::ServiceAccount => self.service_account(&change),
            Subject::TokenRequest => self.token_request(&change),
            Subject::AwsIamRole => self.aws_iam_role(&change),
            Subject::Namespace => self.namespace(&change),
            Subject::Service => self.service(&change),
            Subject::Rules => self.rule_object(&change),
            Subject::ConfigMap => self.config_map(&change),
            Subject::Other => Ok(()),
        }
    }

    /// Reads the objects. An old one that cannot be read counts as none, so that everything of the
    /// new one is judged.
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

    /// The namespace, which every request about a namespaced object has.
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
        self.refuse(Fault::new(
            &malformed.path,
            "request",
            "malformed object",
            &format!("this must be {}", malformed.wanted),
        ));
    }

    /// Refuses by a rule of the gate's own.
    fn guard(&mut self, path: &str, rule: &str, reason: &str) {
        self.refuse(Fault::new(path, GUARD, rule, reason));
    }

    /// Refuses what no layer decides about, or warns while nothing is enforced.
    fn refuse(&mut self, fault: Fault) {
        self.by_mode(self.rules.config.guards(), fault);
    }

    /// Refuses or warns, by the mode of the layer that wants it.
    fn by_mode(&mut self, mode: Mode, fault: Fault) {
        match mode {
            Mode::Enforce => self.outcome.fault(fault),
            Mode::Audit => self.outcome.warning(fault),
            Mode::Off => {}
        }
    }

    /// Whether an update leaves what policies are about as it was: a policy that came later blocks no
    /// finalizer, and no controller that scales what is there. Others' replicas are judged, for
    /// policies may be about them; `scale` is a subresource of its own, and is not.
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

    /// Asks the policies. They are not asked about what rules consist of, so that a policy that
    /// refuses everything can be put right, nor about subresources that they were not written for.
    fn policies(&mut self, subject: Subject<'_>) {
        let mode = self.rules.config.modes.rego;
        let review = self.review;
        let asked_about = matches!(review.operation(), Operation::Create | Operation::Update)
            && matches!(review.subresource(), "" | "ephemeralcontainers")
            && subject != Subject::Rules
            && !(subject == Subject::ConfigMap && self.in_policy_namespace());
        let Some(policies) = self.rules.policies else {
            return;
        };
        if mode == Mode::Off || !asked_about || self.outcome.undecided.is_some() {
            return;
        }
        if self.is_unchanged() {
            return;
        }
        // What they read may not be there yet.
        if let (Mode::Enforce, Some(sentence)) = (mode, self.rules.rules.unseen) {
            self.outcome.undecided = Some(Unseen::Rules(sentence));
            return;
        }
        let findings = policies.judge_review(review.body(), self.now);
        self.outcome.asked = findings.asked;
        for finding in findings.denials {
            let fault = Fault::new("", REGO, &finding.policy, &finding.message);
            self.by_mode(mode, fault);
        }
    }
}

/// Leaves what policies are about: not the status, nor what the API server keeps of an object, nor
/// who waits for its end. `controller`: nor what the control plane's controllers do with it.
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

/// Reads an object that must be one.
fn read(raw: &RawValue) -> Result<Node<'_>, Malformed> {
    let malformed = |wanted| Malformed {
        path: String::new(),
        wanted,
    };
    let value = json::parse(raw)
        .map_err(|_| malformed("JSON of at most 128 levels, with each key once"))?;
    match value {
        Node::Map(_) => Ok(value),
        _ => Err(malformed("an object")),
    }
}
