//! The interpreter's built-ins whose results can be much larger than their arguments, restricted to
//! small arguments.
//!
//! A running built-in cannot be interrupted, and values share their parts: an array that contains
//! the same array twice takes no extra memory, but has its full size when it is formatted or
//! traversed.

use std::collections::BTreeSet;

use regorus::unstable::{BUILTINS, Expr, Ref, Span};
use regorus::value::Object;
use regorus::{Source, Value};

use super::{MAX_ELEMENTS, MAX_TEXT, elements};

/// Maximum nesting of a value, since built-ins are recursive.
const MAX_DEPTH: usize = 128;

/// Maximum total number of elements in all paths of a value.
const MAX_PATHS: usize = 16 * MAX_ELEMENTS;

/// Defines a built-in of the interpreter with bounded arguments and results.
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

/// Calls the interpreter's own built-in of that name. Its errors become undefined.
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

/// The size of a value when it is traversed completely.
#[derive(Debug, Default)]
pub(super) struct Size {
    /// The number of parts, including the value itself.
    pub(super) parts: usize,
    /// The sum of the depths of all parts.
    pub(super) depths: usize,
}

/// Returns the total size of values.
///
/// # Errors
/// Returns an error if they have more parts, text or levels than a built-in accepts.
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

/// Checks that a growing string is still within the size limit of a result.
pub(super) fn bounded_text(name: &str, text: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        text.len() <= MAX_TEXT,
        "{name}: more than {MAX_TEXT} bytes of text"
    );
    Ok(())
}

/// Returns all paths in a value with the value at each. Each path is as long as it is deep.
pub(super) fn walk(arguments: &[Value]) -> anyhow::Result<Value> {
    let size = small("walk", arguments)?;
    anyhow::ensure!(
        size.depths <= MAX_PATHS,
        "walk: more than {MAX_PATHS} elements in all paths together"
    );
    original("walk", arguments)
}

/// Returns all maximal paths from some nodes of a graph that visit no node twice.
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
    /// The total length of all paths found.
    length: usize,
}

impl Paths<'_> {
    /// Returns true if the node and everything reachable from it form a valid graph.
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

    /// Wraps a value in the given number of levels.
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
        // The limit includes the collection itself.
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
        // The object, the array, its two elements, and one within the second.
        assert_eq!((size.parts, size.depths), (5, 1 + 2 + 3 + 3 + 4));
    }
}
