//! Evaluates modules without ConfigMaps, for OPA's own test cases: any package, any data, any
//! query.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use regorus::Value;

use crate::builtins;
use crate::error::{LoadError, one_line};
use crate::evaluate::{self, Part};
use crate::limits::Limits;
use crate::link::Graph;
use crate::panics;
use crate::syntax::ParsedModule;

/// A test case: modules, their input, and a query.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The texts of the modules.
    pub modules: &'a [String],
    /// `data`, an object.
    pub data: Option<&'a Value>,
    /// `input`.
    pub input: Option<&'a Value>,
    /// The query, such as `data.p = x`.
    pub query: &'a str,
    /// The time of the evaluation.
    pub now: Timestamp,
}

/// One answer to a query: the values of its variables by name.
pub type Bindings = BTreeMap<String, Value>;

/// The outcome of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A module or the query is rejected at load.
    Refused(String),
    /// The evaluation fails with an error, which means a denial.
    Failed(String),
    /// The answers to the query. Without answers, the query is undefined.
    Answers(Vec<Bindings>),
}

/// Loads modules as the policy store does, checks them together, and evaluates the query.
pub fn ask(question: &Question<'_>, limits: &Limits) -> Outcome {
    crate::meter::start_clock();
    let (modules, query) = match read(question, limits) {
        Ok(read) => read,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    // Calls in the query are found by analyzing it as a rule. A query without calls gets no rule,
    // which would be visible to a query that enumerates `data`.
    let calls = query.facts.rules.iter().any(|rule| !rule.calls.is_empty());
    let all = || modules.iter().chain(calls.then_some(&query));
    if let Some(fault) = Graph::new(all()).faults().into_values().next() {
        return Outcome::Refused(fault.to_string());
    }
    let part = |module: &Arc<ParsedModule>| Part {
        module: module.clone(),
        is_library: false,
    };
    let parts: Vec<Part> = all().map(part).collect();
    let mut engine = match evaluate::compile(&parts, limits) {
        Ok(engine) => engine,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    builtins::failures::take();
    let outcome = panics::caught(|| {
        engine.clear_data();
        if let Some(data) = question.data {
            engine.add_data(data.clone())?;
        }
        let reads_time = |module: &Arc<ParsedModule>| {
            let mut rules = module.facts.rules.iter();
            rules.any(|rule| rule.calls.iter().any(|call| call.name == builtins::NOW))
        };
        if all().any(reads_time) {
            let now = i64::try_from(question.now.as_nanosecond()).unwrap_or(i64::MAX);
            let function = move |_: Vec<Value>| Ok(Value::from(now));
            engine.add_extension(builtins::NOW.into(), 0, Box::new(function))?;
        }
        engine.set_input(question.input.cloned().unwrap_or(Value::Undefined));
        engine.eval_query(question.query.to_owned(), false)
    });
    match (outcome, builtins::failures::take()) {
        (Some(Err(error)), _) => Outcome::Failed(one_line("evaluation", &error)),
        (Some(Ok(_)), Some(why)) => Outcome::Failed(why),
        (Some(Ok(results)), None) => Outcome::Answers(answers(results)),
        (None, _) => Outcome::Failed("the interpreter failed".into()),
    }
}

type Read = (Vec<Arc<ParsedModule>>, Arc<ParsedModule>);

fn read(question: &Question<'_>, limits: &Limits) -> Result<Read, LoadError> {
    let policy: Arc<str> = "suite".into();
    let modules = question
        .modules
        .iter()
        .enumerate()
        .map(|(number, text)| {
            let entry = format!("test-{number}.rego");
            ParsedModule::read(&policy, &entry, text, limits).map(Arc::new)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let query = format!(
        "package rolegate_query\n\nasked = true {{\n{}\n}}\n",
        question.query
    );
    let query = ParsedModule::read(&policy, "query", &query, limits)?;
    Ok((modules, Arc::new(query)))
}

fn answers(results: regorus::QueryResults) -> Vec<Bindings> {
    let holds = |result: &regorus::QueryResult| {
        let mut expressions = result.expressions.iter();
        expressions
            .all(|expression| !matches!(expression.value, Value::Bool(false) | Value::Undefined))
    };
    let results = results.result.into_iter().filter(holds);
    results
        .map(|result| match &result.bindings {
            Value::Object(bindings) => bindings
                .iter_sorted()
                .filter_map(|(name, value)| {
                    Some((name.as_string().ok()?.to_string(), value.clone()))
                })
                .collect(),
            _ => Bindings::new(),
        })
        .collect()
}

/// Returns a module's text as it is evaluated.
pub fn lowered(text: &str) -> Result<String, LoadError> {
    let policy: Arc<str> = "suite".into();
    let module = ParsedModule::read(&policy, "test-0.rego", text, &Limits::default())?;
    Ok(module.text)
}
