//! An immutable snapshot of policies that any thread can evaluate.

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
use crate::source::EnforcementPoints;
use crate::{data, input, text, wrap};

/// A denial by a policy, or a failure to evaluate it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The ConfigMap, `namespace/name`.
    pub policy: Arc<str>,
    /// A message of `deny`, or the reason why the policy could not be evaluated. One line, safe for
    /// terminals.
    pub message: String,
}

/// The results of all policies for a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// The denials. If empty, the request is allowed.
    pub denials: Vec<Finding>,
    /// The evaluated policies, `namespace/name`.
    pub evaluated: Vec<Arc<str>>,
    /// True if a policy timed out, since a later evaluation may succeed.
    pub transient: bool,
}

impl Findings {
    /// Returns true if no policy denies.
    pub fn is_allowed(&self) -> bool {
        self.denials.is_empty()
    }

    /// Returns the policies that deny, joined by commas.
    pub fn rule(&self) -> String {
        let mut names: Vec<&str> = self
            .denials
            .iter()
            .map(|finding| &*finding.policy)
            .collect();
        names.dedup();
        text::clean(&names.join(", "), text::MAX_MESSAGE)
    }

    /// Returns the messages, joined by semicolons.
    pub fn reason(&self) -> String {
        let messages: Vec<&str> = self
            .denials
            .iter()
            .map(|finding| &*finding.message)
            .collect();
        text::clean(&messages.join("; "), text::MAX_REASON)
    }
}

/// A review that is not JSON.
#[derive(Debug, thiserror::Error)]
#[error("the AdmissionReview is not JSON: {0}")]
pub struct ReviewError(#[from] serde_json::Error);

/// A policy that can be evaluated.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) id: Arc<str>,
    pub(crate) points: EnforcementPoints,
    pub(crate) program: Arc<Program>,
    /// The reason why it cannot be evaluated: its data is incomplete.
    pub(crate) fault: Option<String>,
}

/// A policy that should be evaluated but is unavailable.
#[derive(Debug, Clone)]
pub(crate) struct UnavailablePolicy {
    pub(crate) id: Arc<str>,
    pub(crate) points: EnforcementPoints,
    pub(crate) why: String,
}

/// A snapshot of all policies.
#[derive(Debug, Default)]
pub struct Policies {
    pub(crate) policies: Vec<Policy>,
    /// Policies without a valid version, and missing required policies.
    pub(crate) lacking: Vec<UnavailablePolicy>,
    pub(crate) wrap_pods: bool,
    /// Maximum wall time of all policies for a request.
    pub(crate) question_time: Duration,
}

impl Policies {
    /// Returns true if there are no policies and no required policy is missing.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.lacking.is_empty()
    }

    /// Returns true if admission must evaluate policies.
    pub fn has_admission_policies(&self) -> bool {
        !self.lacking.is_empty() || self.policies.iter().any(|policy| policy.points.admission)
    }

    /// Returns true if a policy in use reads replicated objects of a resource (its plural).
    pub fn read_replicated(
        &self,
        resource: &str,
        counts: impl Fn(EnforcementPoints) -> bool,
    ) -> bool {
        let path = data::of_resource(resource);
        self.policies
            .iter()
            .filter(|policy| counts(policy.points))
            .any(|policy| data::are_related(&path, &policy.program.reads))
    }

    /// Returns true if agents must evaluate policies.
    pub fn has_agent_policies(&self) -> bool {
        self.lacking.iter().any(|lacking| lacking.points.agent)
            || self.policies.iter().any(|policy| policy.points.agent)
    }

    /// Returns true if a result at an agent can change with time alone.
    pub fn reads_time_at_agents(&self) -> bool {
        self.policies
            .iter()
            .any(|policy| policy.points.agent && policy.program.reads_time)
    }

    /// Evaluates the policies for admission on a review.
    ///
    /// A policy that is also enforced at agents gets only the input that it has there for a Pod, so
    /// that both results agree; for other kinds it gets the whole review. A policy that cannot be
    /// evaluated completely denies, and so does one that has no valid version.
    pub fn evaluate_review(&self, review: &serde_json::Value, now: Timestamp) -> Findings {
        if input::is_too_deep(review) {
            let mut findings = self.lack(|_| true);
            for policy in self
                .policies
                .iter()
                .filter(|policy| policy.points.admission)
            {
                deny(
                    &mut findings,
                    &policy.id,
                    "the object is nested too deeply to be evaluated".into(),
                );
            }
            return findings;
        }
        let whole = converted(review);
        self.evaluate_converted(whole.as_ref(), &|| Some(Cow::Borrowed(review)), now)
    }

    /// Evaluates the policies for admission on a serialized review.
    ///
    /// # Errors
    /// [`ReviewError`] if it is not JSON or is nested deeper than serde_json's 128 levels; that
    /// must deny.
    pub fn evaluate_review_json(
        &self,
        review: &[u8],
        now: Timestamp,
    ) -> Result<Findings, ReviewError> {
        let whole: Value = serde_json::from_slice(review)?;
        let json = || serde_json::from_slice(review).ok().map(Cow::Owned);
        Ok(self.evaluate_converted(Some(&whole), &json, now))
    }

    /// Evaluates policies on a converted review. `json` is the same review, from which the inputs
    /// for Pods are derived.
    fn evaluate_converted<'a>(
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
        for policy in self
            .policies
            .iter()
            .filter(|policy| policy.points.admission)
        {
            if is_pod && policy.points.agent {
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

    /// Evaluates the policies for agents on a pod.
    pub fn evaluate_pod(&self, pod: &Workload, now: Timestamp) -> Findings {
        let start = clock();
        let mut findings = self.lack(|points| points.agent);
        let documented = LazyCell::new(|| input::of_workload(pod));
        let input = LazyCell::new(|| converted(&documented));
        for policy in self.policies.iter().filter(|policy| policy.points.agent) {
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

    fn lack(&self, concerns: impl Fn(EnforcementPoints) -> bool) -> Findings {
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

    /// Evaluates a policy on an input and, if that is a Pod, which `pod` then returns, on the
    /// workloads that could have created it.
    fn ask<'a>(
        &self,
        policy: &Policy,
        input: Option<&Value>,
        pod: impl FnOnce() -> Option<&'a serde_json::Value>,
        now: Timestamp,
        start: Duration,
        findings: &mut Findings,
    ) {
        // Wall time, however little CPU time a policy used: the caller has a deadline.
        if clock().saturating_sub(start) > self.question_time {
            let most = self.question_time.as_millis();
            let why = format!(
                "policy {} was not evaluated, since the policies before it took longer than \
                 {most} ms",
                policy.id
            );
            findings.transient = true;
            deny(findings, &policy.id, why);
            return;
        }
        findings.evaluated.push(policy.id.clone());
        if let Some(fault) = &policy.fault {
            deny(findings, &policy.id, fault.clone());
            return;
        }
        let mut messages = Vec::new();
        one(policy, input, now, &mut messages, findings);
        if self.wrap_pods
            && !policy.program.kinds.is_empty()
            && let Some(pod) = pod()
        {
            for wrapped in wrap::wrapped(pod, &policy.program.kinds) {
                one(
                    policy,
                    converted(&wrapped).as_ref(),
                    now,
                    &mut messages,
                    findings,
                );
            }
        }
        for message in messages {
            deny(findings, &policy.id, message);
        }
    }
}

fn converted(input: &serde_json::Value) -> Option<Value> {
    Value::deserialize(input).ok()
}

/// Evaluates a policy once. Messages that it already reported for the same pod are skipped.
fn one(
    policy: &Policy,
    input: Option<&Value>,
    now: Timestamp,
    reported: &mut Vec<String>,
    findings: &mut Findings,
) {
    let Some(input) = input else {
        reported.push(format!("policy {} cannot read the object", policy.id));
        return;
    };
    match policy.program.ask(input, now) {
        Ok(messages) => {
            for message in messages {
                if !reported.contains(&message) {
                    reported.push(message);
                }
            }
        }
        Err(Unanswered { why, transient }) => {
            findings.transient |= transient;
            reported.push(format!("policy {} {why}", policy.id));
        }
    }
}

fn deny(findings: &mut Findings, policy: &Arc<str>, message: String) {
    findings.denials.push(Finding {
        policy: policy.clone(),
        message: text::clean(&message, text::MAX_MESSAGE),
    });
}
