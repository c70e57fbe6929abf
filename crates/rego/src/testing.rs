//! Tests of policies: rules named `test_…` are asked as `opa test` asks them, and what of the
//! policies was evaluated meanwhile is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use regorus::{Engine, Value};

use crate::analysis::RuleFacts;
use crate::book::PolicyBook;
use crate::builtins;
use crate::error::{LoadError, one_line};
use crate::evaluate::{self, Part};
use crate::limits::Limits;
use crate::link::is_deny;
use crate::meter::Meter;
use crate::panics;
use crate::policies::{Policies, Policy};
use crate::syntax::ParsedModule;

/// The prefix of the names of test rules.
const TEST: &str = "test_";
/// The prefix of the names of tests to skip.
const TODO: &str = "todo_test_";
/// The rule by which Gatekeeper's policies refuse.
const VIOLATION: &str = "violation";
/// The time that one test may take of its thread, as `opa test` gives it.
const TEST_TIME: Duration = Duration::from_secs(5);
/// The factor by which a test, which may ask many questions, may exceed one question's memory.
const TEST_MEMORY: usize = 8;

/// A test of a policy, and its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegoTest {
    /// The ConfigMap, `namespace/name`.
    pub policy: Arc<str>,
    /// The entry of the ConfigMap.
    pub entry: String,
    /// The line of its rule, from 1.
    pub line: u32,
    /// The path of its rule, such as `data.kubernetes.admission_test.test_host_path`.
    pub name: String,
    /// The result.
    pub result: RegoResult,
}

/// The result of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegoResult {
    /// Its rule is true.
    Passed,
    /// Its rule is undefined, false or something else.
    Failed,
    /// Its name begins with `todo_test_`.
    Skipped,
    /// It could not be asked, for this reason.
    Errored(String),
}

/// A ConfigMap of policies of which nothing is ever asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unasked {
    /// The ConfigMap, `namespace/name`.
    pub policy: Arc<str>,
    /// The packages of its modules.
    pub packages: BTreeSet<String>,
    /// True if it has a rule `violation`, by which Gatekeeper's policies refuse.
    pub has_violation: bool,
}

/// Lines of modules that were evaluated, of all questions together.
#[derive(Debug, Default)]
pub struct Coverage(Mutex<BTreeMap<String, Lines>>);

/// Lines of one module, from 1.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lines {
    /// Those that were evaluated.
    pub covered: BTreeSet<u32>,
    /// Those with an expression that was never evaluated.
    pub not_covered: BTreeSet<u32>,
}

impl Coverage {
    /// Adds what an engine evaluated.
    pub(crate) fn add(&self, engine: &Engine) {
        let Ok(report) = engine.get_coverage_report() else {
            return;
        };
        let mut modules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for file in report.files {
            let lines = modules.entry(file.path).or_default();
            lines.covered.extend(file.covered);
            lines.not_covered.extend(file.not_covered);
            lines
                .not_covered
                .retain(|line| !lines.covered.contains(line));
        }
    }

    /// The lines of a module; `None` where nothing of it was evaluated.
    fn of(&self, place: &str) -> Option<Lines> {
        let modules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        modules.get(place).cloned()
    }
}

impl Policies {
    /// The same policies; which of their lines are evaluated is kept in `coverage`.
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

impl PolicyBook {
    /// ConfigMaps of policies that refuse nothing: they have no `deny` of package
    /// `kubernetes.admission`, and no `deny` of another one uses their rules. Tests are left out.
    pub fn unasked(&self) -> Vec<Unasked> {
        let mut unasked = Vec::new();
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
            unasked.push(Unasked {
                policy: id.clone(),
                packages: packages.collect(),
                has_violation: rules.any(|rule| name(rule) == VIOLATION),
            });
        }
        unasked
    }

    /// Lines of all modules with what `coverage` knows of them, by ConfigMap and entry. Tests are
    /// left out.
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

    /// Asks every test of the modules in use: all rules named `test_…`, with all modules and all
    /// data in one engine. Those named `todo_test_…` are skipped.
    ///
    /// # Errors
    /// [`LoadError`] where the modules do not compile together.
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
            // Both would be asked as one rule, which is true if one of them is.
            test.result = if names.get(&test.name).is_some_and(|count| *count > 1) {
                let why = "there are several tests of this name: give each a name of its own";
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
    let asked = panics::caught(|| {
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
    // After a panic, the remaining state doesn't show what the test used.
    let Some(asked) = asked else {
        return RegoResult::Errored("the interpreter gave up".into());
    };
    if let Some(exceeded) = meter.exceeded() {
        return RegoResult::Errored(exceeded.to_string());
    }
    match (asked, failure) {
        (Err(error), _) => RegoResult::Errored(one_line("evaluation", &error)),
        (Ok(_), Some(why)) => RegoResult::Errored(why),
        (Ok(value), None) if is_true(&value) => RegoResult::Passed,
        (Ok(_), None) => RegoResult::Failed,
    }
}

/// Returns whether a test's value means that it passed: true, or a set of cases that are all true.
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
