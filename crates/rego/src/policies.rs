//! Policies as they are at one moment: immutable, shared, asked from any thread.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use regorus::Value;
use serde::Deserialize as _;

use rolegate_core::workload::Workload;

use crate::evaluate::{Program, Unanswered};
use crate::meter::clock;
use crate::source::Points;
use crate::{data, input, text, wrap};

/// A policy that was asked, or could not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The ConfigMap, `namespace/name`.
    pub policy: Arc<str>,
    /// What `deny` says, or why the policy could not be asked. One line, fit for terminals.
    pub message: String,
}

/// What policies say to one question.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// What denies; nothing, if it is allowed.
    pub denials: Vec<Finding>,
    /// Policies that were asked, `namespace/name`.
    pub asked: Vec<Arc<str>>,
    /// Whether a policy was not done in time, which another time it may be.
    pub passing: bool,
}

impl Findings {
    /// Whether nothing denies.
    pub fn is_allowed(&self) -> bool {
        self.denials.is_empty()
    }

    /// The policies that deny, joined by commas.
    pub fn rule(&self) -> String {
        let mut names: Vec<&str> = self
            .denials
            .iter()
            .map(|finding| &*finding.policy)
            .collect();
        names.dedup();
        text::clean(&names.join(", "), text::MAX_MESSAGE)
    }

    /// The messages, joined by semicolons.
    pub fn reason(&self) -> String {
        let messages: Vec<&str> = self
            .denials
            .iter()
            .map(|finding| &*finding.message)
            .collect();
        text::clean(&messages.join("; "), text::MAX_REASON)
    }
}

/// A review that isn't JSON.
#[derive(Debug, thiserror::Error)]
#[error("the AdmissionReview is not JSON: {0}")]
pub struct ReviewError(#[from] serde_json::Error);

/// A policy that runs.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) id: Arc<str>,
    pub(crate) points: Points,
    pub(crate) program: Arc<Program>,
    /// Why it can't be asked: what it reads is not whole.
    pub(crate) fault: Option<String>,
}

/// A policy that should be asked and can't be.
#[derive(Debug, Clone)]
pub(crate) struct Lacking {
    pub(crate) id: Arc<str>,
    pub(crate) points: Points,
    pub(crate) why: String,
}

/// All policies at one moment.
#[derive(Debug, Default)]
pub struct Policies {
    pub(crate) policies: Vec<Policy>,
    /// Policies without a version that runs, and required ones that aren't there.
    pub(crate) lacking: Vec<Lacking>,
    pub(crate) wrap_pods: bool,
    /// What all together may take for one question.
    pub(crate) question_time: Duration,
}

impl Policies {
    /// Whether there is nothing to ask and nothing that denies by being absent.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.lacking.is_empty()
    }

    /// Whether a review at the gate needs an answer from here.
    pub fn asks_at_gate(&self) -> bool {
        !self.lacking.is_empty() || self.policies.iter().any(|policy| policy.points.gate)
    }

    /// Whether a policy that is asked at points that count reads replicated objects of a resource
    /// (its plural).
    pub fn read_replicated(&self, resource: &str, counts: impl Fn(Points) -> bool) -> bool {
        let path = data::of_resource(resource);
        self.policies
            .iter()
            .filter(|policy| counts(policy.points))
            .any(|policy| data::are_related(&path, &policy.program.reads))
    }

    /// Whether a request at a door needs an answer from here.
    pub fn asks_at_door(&self) -> bool {
        self.lacking.iter().any(|lacking| lacking.points.door)
            || self.policies.iter().any(|policy| policy.points.door)
    }

    /// Whether a verdict at a door may change by the passing of time alone.
    pub fn reads_time_at_door(&self) -> bool {
        self.policies
            .iter()
            .any(|policy| policy.points.door && policy.program.reads_time)
    }

    /// Judges a review at the gate, for policies that are asked there.
    ///
    /// A policy that is asked at doors too is shown of a Pod only what it is shown there, so that
    /// both say the same; of other kinds it is shown the whole review. What can't be asked to the
    /// end denies, and so does each policy that never ran.
    pub fn judge_review(&self, review: &serde_json::Value, now: Timestamp) -> Findings {
        if input::is_too_deep(review) {
            let mut findings = self.lack(|_| true);
            for policy in self.policies.iter().filter(|policy| policy.points.gate) {
                deny(
                    &mut findings,
                    &policy.id,
                    "the object is nested too deep to be judged".into(),
                );
            }
            return findings;
        }
        let whole = converted(review);
        self.judge_whole(whole.as_ref(), &|| Some(Cow::Borrowed(review)), now)
    }

    /// Judges a review at the gate from its bytes.
    ///
    /// # Errors
    /// [`ReviewError`] where they are not JSON, or nested deeper than serde_json's 128 levels; that
    /// must deny.
    pub fn judge_review_json(
        &self,
        review: &[u8],
        now: Timestamp,
    ) -> Result<Findings, ReviewError> {
        let whole: Value = serde_json::from_slice(review)?;
        let json = || serde_json::from_slice(review).ok().map(Cow::Owned);
        Ok(self.judge_whole(Some(&whole), &json, now))
    }

    /// Judges a review that is given as policies are asked about it. `json` is the same, for what
    /// is asked beside it about Pods.
    fn judge_whole<'a>(
        &self,
        whole: Option<&Value>,
        json: &dyn Fn() -> Option<Cow<'a, serde_json::Value>>,
        now: Timestamp,
    ) -> Findings {
        let start = clock();
        let mut findings = self.lack(|_| true);
        let is_pod = whole.is_none_or(input::asks_for_pod);
        let json = LazyCell::new(json);
        let documented = LazyCell::new(|| json.as_deref().map(input::of_review));
        let documented_input = LazyCell::new(|| converted(documented.as_ref()?));
        for policy in self.policies.iter().filter(|policy| policy.points.gate) {
            if is_pod && policy.points.door {
                let input = documented_input.as_ref();
                self.ask(
                    policy,
                    input,
                    || documented.as_ref(),
                    now,
                    start,
                    &mut findings,
                );
            } else {
                let unwrapped = || json.as_deref().filter(|_| is_pod);
                self.ask(policy, whole, unwrapped, now, start, &mut findings);
            }
        }
        findings
    }

    /// Judges a pod at a door, for policies that are asked there.
    pub fn judge_pod(&self, pod: &Workload, now: Timestamp) -> Findings {
        let start = clock();
        let mut findings = self.lack(|points| points.door);
        let documented = LazyCell::new(|| input::of_workload(pod));
        let input = LazyCell::new(|| converted(&documented));
        for policy in self.policies.iter().filter(|policy| policy.points.door) {
            let input = input.as_ref();
            self.ask(
                policy,
                input,
                || Some(&documented),
                now,
                start,
                &mut findings,
            );
        }
        findings
    }

    fn lack(&self, concerns: impl Fn(Points) -> bool) -> Findings {
        let mut findings = Findings::default();
        for lacking in self
            .lacking
            .iter()
            .filter(|lacking| concerns(lacking.points))
        {
            deny(&mut findings, &lacking.id, lacking.why.clone());
        }
        findings
    }

    /// Asks a policy about an input, and where that is a Pod, which `pod` gives then, about the
    /// workloads that could have made it.
    fn ask<'a>(
        &self,
        policy: &Policy,
        input: Option<&Value>,
        pod: impl FnOnce() -> Option<&'a serde_json::Value>,
        now: Timestamp,
        start: Duration,
        findings: &mut Findings,
    ) {
        // By the clock, whatever a policy's own time is: whoever asks has no more.
        if clock().saturating_sub(start) > self.question_time {
            let most = self.question_time.as_millis();
            let why = format!(
                "policy {} was not asked, since those before it took longer than {most} ms",
                policy.id
            );
            findings.passing = true;
            deny(findings, &policy.id, why);
            return;
        }
        findings.asked.push(policy.id.clone());
        if let Some(fault) = &policy.fault {
            deny(findings, &policy.id, fault.clone());
            return;
        }
        let mut told = Vec::new();
        one(policy, input, now, &mut told, findings);
        if self.wrap_pods
            && !policy.program.kinds.is_empty()
            && let Some(pod) = pod()
        {
            for wrapped in wrap::wrapped(pod, &policy.program.kinds) {
                one(
                    policy,
                    converted(&wrapped).as_ref(),
                    now,
                    &mut told,
                    findings,
                );
            }
        }
        for message in told {
            deny(findings, &policy.id, message);
        }
    }
}

fn converted(input: &serde_json::Value) -> Option<Value> {
    Value::deserialize(input).ok()
}

/// Asks a policy once; what it said before about the same pod is not told twice.
fn one(
    policy: &Policy,
    input: Option<&Value>,
    now: Timestamp,
    told: &mut Vec<String>,
    findings: &mut Findings,
) {
    let Some(input) = input else {
        told.push(format!("policy {} can't read the object", policy.id));
        return;
    };
    match policy.program.ask(input, now) {
        Ok(messages) => {
            for message in messages {
                if !told.contains(&message) {
                    told.push(message);
                }
            }
        }
        Err(Unanswered { why, passing }) => {
            findings.passing |= passing;
            told.push(format!("policy {} {why}", policy.id));
        }
    }
}

fn deny(findings: &mut Findings, policy: &Arc<str>, message: String) {
    findings.denials.push(Finding {
        policy: policy.clone(),
        message: text::clean(&message, text::MAX_MESSAGE),
    });
}
