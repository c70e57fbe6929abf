//! Built-ins of the interpreter that may make much of little, asked only about what is small.
//!
//! Nothing stops a built-in while it runs, and values share their parts: an array of twice the same
//! array takes no memory, and written down or walked through it is as long as it looks.

use std::collections::BTreeSet;

use regorus::unstable::{BUILTINS, Expr, Ref, Span};
use regorus::value::Object;
use regorus::{Source, Value};

use super::{MAX_ELEMENTS, MAX_TEXT, elements};

/// Most levels of a value: built-ins go down by recursion.
const MAX_DEPTH: usize = 128;

/// Most elements of all paths in a value together.
const MAX_PATHS: usize = 16 * MAX_ELEMENTS;

/// A built-in of the interpreter that is asked about small values only, and whose answer is one.
macro_rules! bounded {
    ($function:ident, $name:literal) => {
        pub(super) fn $function(arguments: &[Value]) -> anyhow::Result<Value> {
            small($name, arguments)?;
            let made = original($name, arguments)?;
            small($name, std::slice::from_ref(&made))?;
            Ok(made)
        }
    };
}

bounded!(base64_encode, "base64.encode");
bounded!(base64url_encode, "base64url.encode");
bounded!(base64url_encode_no_pad, "base64url.encode_no_pad");
bounded!(hex_encode, "hex.encode");

/// The interpreter's own built-in of that name. What it refuses is undefined.
pub(super) fn original(name: &str, arguments: &[Value]) -> anyhow::Result<Value> {
    let Some((function, _)) = BUILTINS.get(name) else {
        return Ok(Value::Undefined);
    };
    let source = Source::from_contents(name.to_owned(), String::new())?;
    let span = Span {
        source,
        line: 1,
        col: 1,
        start: 0,
        end: 0,
    };
    let places: Vec<Ref<Expr>> = arguments
        .iter()
        .map(|_| {
            Ref::new(Expr::Null {
                span: span.clone(),
                value: Value::Null,
                eidx: 0,
            })
        })
        .collect();
    Ok(function(&span, &places, arguments, false).unwrap_or(Value::Undefined))
}

/// What a value comes to where it is looked at part by part.
#[derive(Debug, Default)]
pub(super) struct Size {
    /// Parts, itself included.
    pub(super) parts: usize,
    /// The sum of how deep each of them is.
    pub(super) depths: usize,
}

/// How big values are.
///
/// # Errors
/// They have more parts, text or depth than a built-in is asked about.
pub(super) fn small(name: &str, values: &[Value]) -> anyhow::Result<Size> {
    let (mut size, mut bytes) = (Size::default(), 0usize);
    let mut open: Vec<(&Value, usize)> = values.iter().map(|value| (value, 1)).collect();
    while let Some((value, depth)) = open.pop() {
        size.parts += 1;
        size.depths += depth;
        if let Value::String(text) = value {
            bytes = bytes.saturating_add(text.len());
        }
        anyhow::ensure!(
            bytes <= MAX_TEXT,
            "{name}: more than {MAX_TEXT} bytes of text"
        );
        anyhow::ensure!(depth <= MAX_DEPTH, "{name}: more than {MAX_DEPTH} levels");
        let room = MAX_ELEMENTS.saturating_sub(size.parts + open.len());
        let inside = match value {
            Value::Array(array) => array.len(),
            Value::Set(set) => set.len(),
            Value::Object(object) => object.len(),
            _ => 0,
        };
        anyhow::ensure!(inside <= room, "{name}: more than {MAX_ELEMENTS} elements");
        let depth = depth + 1;
        match value {
            Value::Array(array) => open.extend(array.iter().map(|part| (part, depth))),
            Value::Set(set) => open.extend(set.iter().map(|part| (part, depth))),
            Value::Object(object) => {
                for (key, value) in object.iter() {
                    match key {
                        Value::String(text) => bytes = bytes.saturating_add(text.len()),
                        key => open.push((key, depth)),
                    }
                    open.push((value, depth));
                }
            }
            _ => {}
        }
    }
    Ok(size)
}

/// Checks that a growing text is still within the bound on a built-in's result.
pub(super) fn bounded_text(name: &str, text: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        text.len() <= MAX_TEXT,
        "{name}: more than {MAX_TEXT} bytes of text"
    );
    Ok(())
}

/// All paths in a value with what is there. Each path is as long as it is deep.
pub(super) fn walk(arguments: &[Value]) -> anyhow::Result<Value> {
    let size = small("walk", arguments)?;
    anyhow::ensure!(
        size.depths <= MAX_PATHS,
        "walk: more than {MAX_PATHS} elements in all paths together"
    );
    original("walk", arguments)
}

/// All paths from some nodes of a graph: each as far as it goes without a node twice.
pub(super) fn reachable_paths(arguments: &[Value]) -> anyhow::Result<Value> {
    let (Some(Value::Object(graph)), Some(starts)) =
        (arguments.first(), elements(arguments.get(1)))
    else {
        return Ok(Value::Undefined);
    };
    let mut paths = Paths {
        graph,
        path: Vec::new(),
        found: BTreeSet::new(),
        length: 0,
    };
    for start in starts {
        if !paths.visit(start)? {
            return Ok(Value::Undefined);
        }
    }
    Ok(super::set_of(paths.found.into_iter().map(Value::from)))
}

struct Paths<'a> {
    graph: &'a Object,
    path: Vec<Value>,
    found: BTreeSet<Vec<Value>>,
    /// Of all that were found, together.
    length: usize,
}

impl Paths<'_> {
    /// Whether the graph is one from here on.
    fn visit(&mut self, node: &Value) -> anyhow::Result<bool> {
        const NAME: &str = "graph.reachable_paths";
        let is_end = matches!(node, Value::String(name) if name.is_empty());
        let neighbours = match self.graph.get(node) {
            Some(neighbours) if !is_end && !self.path.contains(node) => neighbours,
            _ => return self.end(),
        };
        anyhow::ensure!(
            self.path.len() < MAX_DEPTH,
            "{NAME}: more than {MAX_DEPTH} levels"
        );
        let neighbours = match neighbours {
            Value::Null => Vec::new(),
            other => elements(Some(other)).unwrap_or_default(),
        };
        self.path.push(node.clone());
        if neighbours.is_empty() {
            self.end()?;
        }
        for neighbour in neighbours {
            if !self.visit(neighbour)? {
                return Ok(false);
            }
        }
        self.path.pop();
        Ok(true)
    }

    fn end(&mut self) -> anyhow::Result<bool> {
        if !self.path.is_empty() {
            self.length += self.path.len();
            anyhow::ensure!(
                self.length <= MAX_ELEMENTS,
                "graph.reachable_paths: more than {MAX_ELEMENTS} elements in all paths together"
            );
            self.found.insert(self.path.clone());
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::set_of;
    use super::*;

    fn fits(value: Value) -> bool {
        small("test", &[value]).is_ok()
    }

    /// Nests a value the given number of levels deep.
    fn nested(levels: usize, inside: Value, around: impl Fn(Value) -> Value) -> Value {
        (1..levels).fold(inside, |value, _| around(value))
    }

    #[test]
    fn depth_is_counted_in_arrays_sets_objects_and_keys() {
        let object = |value: Value| Object::from_iter([(Value::from("k"), value)]).into_value();
        let key = |value: Value| Object::from_iter([(value, Value::from(1u64))]).into_value();
        let around: [(&str, &dyn Fn(Value) -> Value); 4] = [
            ("arrays", &|value| Value::from(vec![value])),
            ("sets", &|value| set_of([value])),
            ("objects", &object),
            ("keys", &key),
        ];
        for (name, around) in around {
            let one = Value::from(1u64);
            assert!(fits(nested(MAX_DEPTH, one.clone(), around)), "{name}");
            assert!(!fits(nested(MAX_DEPTH + 1, one, around)), "{name}");
        }
    }

    #[test]
    fn elements_are_counted_wherever_they_are() {
        let numbers = |count: usize| (0..count).map(Value::from);
        let array = |count| Value::from(numbers(count).collect::<Vec<_>>());
        let object = |count| {
            let pairs = numbers(count).map(|number| (number.clone(), number));
            Object::from_iter(pairs).into_value()
        };
        // With the collection itself.
        assert!(fits(array(MAX_ELEMENTS - 1)));
        assert!(!fits(array(MAX_ELEMENTS + 1)));
        assert!(!fits(set_of(numbers(MAX_ELEMENTS + 1))));
        assert!(!fits(object(MAX_ELEMENTS + 1)));
        let half = array(MAX_ELEMENTS / 2 + 1);
        assert!(fits(Value::from(vec![half.clone()])));
        assert!(!fits(Value::from(vec![half.clone(), half.clone()])));
        let pair = [(Value::from("a"), half.clone()), (Value::from("b"), half)];
        assert!(!fits(Object::from_iter(pair).into_value()));
    }

    #[test]
    fn text_is_counted_in_values_and_in_keys() {
        let long = "x".repeat(MAX_TEXT / 2 + 1);
        assert!(fits(Value::from(json!([long]))));
        assert!(!fits(Value::from(json!([long, long]))));
        assert!(!fits(Value::from(json!({ long.as_str(): long }))));
    }

    #[test]
    fn size_is_parts_and_how_deep_they_are() {
        let size = small("test", &[Value::from(json!({"a": [1, [2]]}))]).unwrap();
        // The object, the array, its two elements, and one in the second.
        assert_eq!((size.parts, size.depths), (5, 1 + 2 + 3 + 3 + 4));
    }
}
