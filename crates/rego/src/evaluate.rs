//! The compiled `deny` rule of one ConfigMap: a prepared engine that is cloned for each evaluation.
//! Clones share modules, schedule and data.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use regorus::{Engine, Value};

use crate::analysis::Path;
use crate::builtins;
use crate::coverage::Coverage;
use crate::error::{LoadError, one_line};
use crate::limits::Limits;
use crate::meter::{Exceeded, Meter};
use crate::panics;
use crate::syntax::{ParsedModule, Syntax};
use crate::text;

/// The rule that is evaluated.
const DENY: &str = "data.kubernetes.admission.deny";
/// A query that prepares the engine and reads nothing.
const READY: &str = "true";
/// Maximum number of messages reported for one policy.
const MAX_MESSAGES: usize = 16;

/// A module in an engine: complete, or as a library of another ConfigMap.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) module: Arc<ParsedModule>,
    pub(crate) is_library: bool,
}

/// Parses and analyzes modules together, without data.
pub(crate) fn compile(parts: &[Part], limits: &Limits) -> Result<Engine, LoadError> {
    let place = parts.first().map_or("", |part| &part.module.place);
    let compiled = panics::caught(|| {
        let mut engine = Engine::new();
        engine.set_policy_length_config(limits.lowered_lengths());
        engine.set_execution_timer_config(limits.timer());
        engine.set_strict_builtin_errors(false);
        // Discards the output of `print`: each clone collects it and is dropped with it.
        engine.set_gather_prints(true);
        let is_called = |name: &str| {
            let calls = |part: &Part| {
                let mut rules = part.module.facts.rules.iter();
                rules.any(|rule| rule.calls.iter().any(|call| call.name == name))
            };
            parts.iter().any(calls)
        };
        let patterns = parts
            .iter()
            .flat_map(|part| &part.module.facts.rules)
            .flat_map(|rule| &rule.calls)
            .filter_map(|call| {
                let pattern = call.pattern.as_deref()?;
                Some((call.name.as_str(), pattern))
            });
        builtins::supply(&mut engine, is_called, patterns)?;
        supply_missing(&mut engine, parts)?;
        for Part { module, is_library } in parts {
            engine.set_rego_v0(module.syntax == Syntax::V0);
            let text = match &module.as_library {
                Some(library) if *is_library => library,
                _ => &module.text,
            };
            engine.add_policy(module.place.clone(), text.clone())?;
        }
        engine.eval_query(READY.into(), false)?;
        anyhow::Ok(engine)
    });
    match compiled {
        Some(compiled) => compiled.map_err(|error| LoadError::compile(place, &error)),
        None => Err(LoadError::Compile(format!("{place}: the compiler failed"))),
    }
}

/// Adds the missing built-ins that are called. Linking accepts only those that a `with` replaces.
fn supply_missing(engine: &mut Engine, parts: &[Part]) -> anyhow::Result<()> {
    let mut supplied = BTreeSet::new();
    let rules = parts.iter().flat_map(|part| &part.module.facts.rules);
    for call in rules.flat_map(|rule| &rule.calls) {
        if let Some(why) = builtins::missing(&call.name)
            && supplied.insert(&call.name)
        {
            builtins::supply_missing(engine, &call.name, why, call.arguments)?;
        }
    }
    Ok(())
}

/// Returns the engine with data, ready to be cloned.
pub(crate) fn with_data(engine: &Engine, data: Value) -> anyhow::Result<Engine> {
    let mut engine = engine.clone();
    engine.clear_data();
    engine.add_data(data)?;
    engine.eval_query(READY.into(), false)?;
    Ok(engine)
}

/// A policy that is ready for evaluation.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) engine: Engine,
    pub(crate) limits: Limits,
    pub(crate) reads_time: bool,
    /// Paths below `data` that the policy reads.
    pub(crate) reads: BTreeSet<Path>,
    /// Kinds with a pod template that the policy names.
    pub(crate) kinds: BTreeSet<&'static str>,
    /// Records the lines that are evaluated, in tests.
    pub(crate) coverage: Option<Arc<Coverage>>,
}

/// The reason why an evaluation was not completed.
#[derive(Debug)]
pub(crate) struct Unanswered {
    /// The reason, one clause.
    pub(crate) why: String,
    /// True for a timeout, since a later evaluation may succeed.
    pub(crate) transient: bool,
}

impl Program {
    /// Returns the same program, which records evaluated lines in `coverage`.
    pub(crate) fn observed(&self, coverage: &Arc<Coverage>) -> Self {
        let mut engine = self.engine.clone();
        engine.set_enable_coverage(true);
        Self {
            engine,
            limits: self.limits.clone(),
            reads_time: self.reads_time,
            reads: self.reads.clone(),
            kinds: self.kinds.clone(),
            coverage: Some(coverage.clone()),
        }
    }

    /// Evaluates `deny` and returns its messages.
    ///
    /// # Errors
    /// [`Unanswered`], which must deny.
    pub(crate) fn ask(&self, input: &Value, now: Timestamp) -> Result<Vec<String>, Unanswered> {
        let meter = Meter::start(&self.limits);
        builtins::failures::take();
        // A panic of the interpreter results in a denial instead of ending the process.
        let outcome = panics::caught(|| {
            let mut engine = self.engine.clone();
            if self.reads_time {
                let now = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
                engine.add_extension(
                    builtins::NOW.into(),
                    0,
                    Box::new(move |_: Vec<Value>| Ok(Value::from(now))),
                )?;
            }
            engine.set_input(input.clone());
            let value = engine.eval_rule(DENY.into());
            if let Some(coverage) = &self.coverage {
                coverage.add(&engine);
            }
            value
        });
        let failure = builtins::failures::take();
        // The meter and recorded failures are checked in addition to the error: the interpreter
        // drops errors of functions with several bodies, embeds them in others, and reports any
        // exceeded limit as a timeout.
        let failed = |why| Unanswered {
            why,
            transient: false,
        };
        // After a panic, the remaining state does not show what the evaluation used.
        let Some(outcome) = outcome else {
            return Err(failed("failed: the interpreter failed".into()));
        };
        if let Some(exceeded) = meter.exceeded() {
            return Err(Unanswered {
                why: exceeded.to_string(),
                transient: matches!(exceeded, Exceeded::Time(_) | Exceeded::Waiting(_)),
            });
        }
        match (outcome, failure) {
            (Err(error), _) => {
                let why = format!("failed: {}", one_line("evaluation", &error));
                Err(failed(why))
            }
            (Ok(_), Some(why)) => Err(failed(format!("failed: {why}"))),
            (Ok(value), None) => Ok(messages(&value)),
        }
    }
}

fn messages(value: &Value) -> Vec<String> {
    let mut texts = Vec::new();
    match value {
        Value::Undefined | Value::Null | Value::Bool(false) => {}
        Value::Set(elements) => texts.extend(elements.iter_sorted().map(message)),
        Value::Array(elements) => texts.extend(elements.iter().map(message)),
        // v1's `deny[msg] if …` is an object whose keys are the messages.
        Value::Object(object) if object.values().all(|value| *value == Value::Bool(true)) => {
            texts.extend(object.keys_sorted().map(message));
        }
        other => texts.push(message(other)),
    }
    let more = texts.len().saturating_sub(MAX_MESSAGES);
    texts.truncate(MAX_MESSAGES);
    if more > 0 {
        texts.push(format!("and {more} more"));
    }
    texts
}

fn message(value: &Value) -> String {
    let written = |value: &Value| {
        let mut out = String::new();
        match builtins::marshal(value, &mut out) {
            Ok(()) => out,
            Err(_) => String::new(),
        }
    };
    let shown = match value {
        Value::String(text) => text.to_string(),
        Value::Bool(true) => String::new(),
        Value::Object(object) => match object.get(&Value::from("msg")) {
            Some(Value::String(text)) => text.to_string(),
            _ => written(value),
        },
        other => written(other),
    };
    let shown = text::clean(shown.trim(), text::MAX_MESSAGE);
    if shown.is_empty() {
        "denied without a message".into()
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_texts_objects_keys_or_json() {
        let messages_of = |json: &str| messages(&Value::from_json_str(json).unwrap());
        assert_eq!(
            messages_of(r#"["a", {"msg": "b", "x": 1}, {"x": 1}, 3]"#),
            ["a", "b", r#"{"x":1}"#, "3"]
        );
        assert_eq!(messages_of(r#"{"a": true, "b": true}"#), ["a", "b"]);
        assert_eq!(messages_of(r#"{"msg": "a"}"#), ["a"]);
        assert_eq!(messages_of("true"), ["denied without a message"]);
        for nothing in ["false", "null", "[]", "{}"] {
            assert!(messages_of(nothing).is_empty(), "{nothing}");
        }
        assert_eq!(
            messages_of(&format!("[{}]", ["1"; 40].join(","))).len(),
            MAX_MESSAGES + 1
        );
    }
}
