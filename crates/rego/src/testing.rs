//! Tests of policies: evaluates rules named `test_…` as `opa test` does, and records the lines of
//! policies that are evaluated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use regorus::{Engine, Value};

use crate::analysis::RuleFacts;
use crate::builtins;
use crate::coverage::{Coverage, Lines};
use crate::error::{LoadError, one_line};
use crate::evaluate::{self, Part};
use crate::limits::Limits;
use crate::link::is_deny;
use crate::meter::Meter;
use crate::panics;
use crate::policies::{Policies, Policy};
use crate::policy_store::PolicyStore;
use crate::syntax::ParsedModule;

/// The prefix of test rules.
const TEST: &str = "test_";
/// The prefix of skipped tests.
const TODO: &str = "todo_test_";
/// The rule by which Gatekeeper's policies deny.
const VIOLATION: &str = "violation";
/// Maximum CPU time of one test, the same as that of `opa test`.
const TEST_TIME: Duration = Duration::from_secs(5);
/// The factor by which a test, which may evaluate policies repeatedly, may exceed the memory limit
/// of an evaluation.
const TEST_MEMORY: usize = 8;

/// A test of a policy with its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegoTest {
    /// The ConfigMap, `namespace/name`.
    pub policy: Arc<str>,
    /// The entry of the ConfigMap.
    pub entry: String,
    /// The line of the rule, from 1.
    pub line: u32,
    /// The path of the rule, such as `data.kubernetes.admission_test.test_host_path`.
    pub name: String,
    /// The result of the test.
    pub result: RegoResult,
}

/// The result of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegoResult {
    /// The rule is true.
    Passed,
    /// The rule is undefined, false or has another value.
    Failed,
    /// The name begins with `todo_test_`.
    Skipped,
    /// The test could not be evaluated, for this reason.
    Errored(String),
}

/// A policy ConfigMap whose rules are never evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedPolicy {
    /// The ConfigMap, `namespace/name`.
    pub policy: Arc<str>,
    /// The packages of the modules.
    pub packages: BTreeSet<String>,
    /// True if a module has a rule `violation`, by which Gatekeeper's policies deny.
    pub has_violation: bool,
}

impl Policies {
    /// Returns the same policies, which record evaluated lines in `coverage`.
    pub fn observed(&self, coverage: &Arc<Coverage>) -> Self {
        let policies = self.policies.iter().map(|policy| Policy {
            id: policy.id.clone(),
            points: policy.points,
            fault: policy.fault.clone(),
            program: Arc::new(policy.program.observed(coverage)),
        });
        Self {
            policies: policies.collect(),
            lacking: self.lacking.clone(),
            wrap_pods: self.wrap_pods,
            question_time: self.question_time,
        }
    }
}

impl PolicyStore {
    /// Returns the policy ConfigMaps that cannot deny anything: they have no `deny` in package
    /// `kubernetes.admission`, and no `deny` of another one uses their rules. Tests are omitted.
    pub fn unused_policies(&self) -> Vec<UnusedPolicy> {
        let mut unused = Vec::new();
        for (id, modules) in self.modules_in_use() {
            let is_library = || self.is_library(id);
            let mut rules = modules.iter().flat_map(|module| &module.facts.rules);
            if rules
                .clone()
                .any(|rule| is_deny(&rule.path) || is_test(rule))
                || is_library()
            {
                continue;
            }
            let packages = modules.iter().map(|module| module.facts.package.join("."));
            unused.push(UnusedPolicy {
                policy: id.clone(),
                packages: packages.collect(),
                has_violation: rules.any(|rule| name(rule) == VIOLATION),
            });
        }
        unused
    }

    /// Returns the lines of all modules with their coverage, by ConfigMap and entry. Tests are
    /// omitted.
    pub fn coverage(&self, coverage: &Coverage) -> Vec<(Arc<str>, String, Lines)> {
        let mut all = Vec::new();
        for (id, modules) in self.modules_in_use() {
            for module in modules {
                let rules = &module.facts.rules;
                if rules.iter().any(is_test) {
                    continue;
                }
                let unseen = || Lines {
                    covered: BTreeSet::new(),
                    not_covered: rules.iter().map(|rule| rule.line).collect(),
                };
                let lines = coverage.of(&module.place).unwrap_or_else(unseen);
                all.push((id.clone(), entry(module), lines));
            }
        }
        all
    }

    /// Runs all tests of the modules in use: all rules named `test_…`, with all modules and data in
    /// one engine. Those named `todo_test_…` are skipped.
    ///
    /// # Errors
    /// [`LoadError`] if the modules do not compile together.
    pub fn run_tests(
        &self,
        now: Timestamp,
        coverage: &Arc<Coverage>,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<RegoTest>, LoadError> {
        let modules: Vec<_> = self
            .modules_in_use()
            .flat_map(|(id, modules)| modules.into_iter().map(move |module| (id, module)))
            .collect();
        let mut tests: Vec<RegoTest> = Vec::new();
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        for (id, module) in &modules {
            for rule in module.facts.rules.iter().filter(|rule| is_test(rule)) {
                let name = format!("data.{}", rule.path.join("."));
                if !is_wanted(&name) {
                    continue;
                }
                *names.entry(name.clone()).or_default() += 1;
                tests.push(RegoTest {
                    policy: (*id).clone(),
                    entry: entry(module),
                    line: rule.line,
                    name,
                    result: RegoResult::Skipped,
                });
            }
        }
        let is_due = |test: &RegoTest| !test.name.rsplit('.').next().is_some_and(is_todo);
        if !tests.iter().any(is_due) {
            return Ok(tests);
        }
        let parts: Vec<_> = modules
            .iter()
            .map(|(_, module)| Part {
                module: (*module).clone(),
                is_library: false,
            })
            .collect();
        let limits = Limits {
            eval_time: TEST_TIME,
            eval_bytes: self.limits().eval_bytes.saturating_mul(TEST_MEMORY),
            ..self.limits().clone()
        };
        let engine = evaluate::compile(&parts, &limits)?;
        let mut engine = evaluate::with_data(&engine, self.all_data())
            .map_err(|error| LoadError::Compile(one_line("data", &error)))?;
        engine.set_enable_coverage(true);
        for test in tests.iter_mut().filter(|test| is_due(test)) {
            // Tests of the same name would be evaluated as one rule, which passes if either does.
            test.result = if names.get(&test.name).is_some_and(|count| *count > 1) {
                let why = "several tests have this name: give each a unique name";
                RegoResult::Errored(why.into())
            } else {
                ask(&engine, &limits, &test.name, now, coverage)
            };
        }
        Ok(tests)
    }
}

fn ask(
    engine: &Engine,
    limits: &Limits,
    name: &str,
    now: Timestamp,
    coverage: &Coverage,
) -> RegoResult {
    let meter = Meter::start(limits);
    builtins::failures::take();
    let outcome = panics::caught(|| {
        let mut engine = engine.clone();
        let now = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
        engine.add_extension(
            builtins::NOW.into(),
            0,
            Box::new(move |_: Vec<Value>| Ok(Value::from(now))),
        )?;
        engine.set_input(Value::Undefined);
        let value = engine.eval_rule(name.to_owned());
        coverage.add(&engine);
        value
    });
    let failure = builtins::failures::take();
    // After a panic, the remaining state does not show what the test used.
    let Some(outcome) = outcome else {
        return RegoResult::Errored("the interpreter failed".into());
    };
    if let Some(exceeded) = meter.exceeded() {
        return RegoResult::Errored(exceeded.to_string());
    }
    match (outcome, failure) {
        (Err(error), _) => RegoResult::Errored(one_line("evaluation", &error)),
        (Ok(_), Some(why)) => RegoResult::Errored(why),
        (Ok(value), None) if is_true(&value) => RegoResult::Passed,
        (Ok(_), None) => RegoResult::Failed,
    }
}

/// Returns true if a test passed: its value is true, or a set of cases that are all true.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(value) => *value,
        Value::Object(cases) => cases.values().next().is_some() && cases.values().all(is_true),
        _ => false,
    }
}

fn entry(module: &ParsedModule) -> String {
    let entry = module.place.strip_prefix(&*module.policy);
    let entry = entry.and_then(|entry| entry.strip_prefix(": "));
    entry.unwrap_or(&module.place).to_owned()
}

fn name(rule: &RuleFacts) -> &str {
    rule.path.last().map_or("", String::as_str)
}

fn is_todo(name: &str) -> bool {
    name.starts_with(TODO)
}

fn is_test(rule: &RuleFacts) -> bool {
    name(rule).starts_with(TEST) || is_todo(name(rule))
}
