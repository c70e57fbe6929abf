//! Test expressions with OPA's results: `tests/builtins/*.txt`, two lines for each.
//!
//! The result is JSON as `json.marshal` formats it, `undefined`, or `denied`: OPA has another
//! result or none, and the request is denied with a reason.

use std::path::Path;
use std::sync::Arc;

use regorus::Value;

use super::{failures, marshal};
use crate::evaluate::{Part, compile};
use crate::limits::Limits;
use crate::syntax::ParsedModule;

/// Evaluates an expression and formats the result.
fn answer(expression: &str) -> String {
    let limits = Limits::default();
    let text = format!("package rows\n\nrow = x {{\n\tx := {expression}\n}}\n");
    let policy: Arc<str> = "rows".into();
    let module = match ParsedModule::read(&policy, "row.rego", &text, &limits) {
        Ok(module) => Arc::new(module),
        Err(error) => return format!("refused: {error}"),
    };
    let part = Part {
        module,
        is_library: false,
    };
    let mut engine = match compile(&[part], &limits) {
        Ok(engine) => engine,
        Err(error) => return format!("refused: {error}"),
    };
    failures::take();
    match (
        engine.eval_query("data.rows.row".into(), false),
        failures::take(),
    ) {
        (Err(_), _) | (_, Some(_)) => "denied".into(),
        (Ok(results), None) => {
            let mut results = results.result.into_iter().flat_map(|row| row.expressions);
            match results.next().map(|expression| expression.value) {
                None | Some(Value::Undefined) => "undefined".into(),
                Some(value) => {
                    let mut out = String::new();
                    marshal(&value, &mut out).unwrap();
                    out
                }
            }
        }
    }
}

#[test]
fn built_ins_answer_as_opa_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/builtins");
    let (mut count, mut differ) = (0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for row in lines.chunks(2) {
            let [expression, wanted] = row else {
                panic!("{row:?} is half a row");
            };
            count += 1;
            let got = answer(expression);
            if got != wanted.trim_start() {
                differ.push(format!(
                    "{expression}\n  OPA  {}\n  here {got}",
                    wanted.trim_start()
                ));
            }
        }
    }
    assert!(
        differ.is_empty(),
        "{} of {count}:\n{}",
        differ.len(),
        differ.join("\n")
    );
    assert!(count > 2_500, "{count}");
}
