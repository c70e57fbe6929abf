//! The values of an old chart. Reading a value removes it, so that what remains was never read.

use serde_json::{Map, Value};

/// The values of an old chart.
#[derive(Debug)]
pub(crate) struct OldValues(Map<String, Value>);

impl OldValues {
    /// Returns values of which none was read.
    pub(crate) fn new(values: Map<String, Value>) -> Self {
        Self(values)
    }

    /// Removes and returns the value at a path such as `host.port`. Null counts as unset, as in
    /// Helm.
    pub(crate) fn take(&mut self, path: &str) -> Option<Value> {
        self.take_if(path, |_| true)
    }

    /// Removes and returns a scalar as the templates print it. Another value stays unread.
    pub(crate) fn take_text(&mut self, path: &str) -> Option<String> {
        let value = self.take_if(path, |value| text(value).is_some())?;
        text(&value)
    }

    /// Removes and returns a text that is not empty.
    pub(crate) fn take_nonempty(&mut self, path: &str) -> Option<String> {
        self.take_text(path).filter(|text| !text.is_empty())
    }

    /// Removes a value and returns whether the templates regard it as true.
    pub(crate) fn take_switch(&mut self, path: &str) -> Option<bool> {
        self.take(path).map(|value| is_true(&value))
    }

    /// Removes and returns a map. Another value stays unread.
    pub(crate) fn take_map(&mut self, path: &str) -> Option<Map<String, Value>> {
        match self.take_if(path, Value::is_object)? {
            Value::Object(map) => Some(map),
            _ => None,
        }
    }

    /// Removes and returns a list. Another value stays unread.
    pub(crate) fn take_list(&mut self, path: &str) -> Option<Vec<Value>> {
        match self.take_if(path, Value::is_array)? {
            Value::Array(list) => Some(list),
            _ => None,
        }
    }

    /// Returns the paths of the values that were not read and are not empty.
    pub(crate) fn unread(&self) -> Vec<String> {
        let mut paths = Vec::new();
        for (key, value) in &self.0 {
            leaves(key, value, &mut paths);
        }
        paths
    }

    fn take_if(&mut self, path: &str, is_wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let (parents, last) = match path.rsplit_once('.') {
            Some((parents, last)) => (parents.split('.').collect(), last),
            None => (Vec::new(), path),
        };
        let mut here = &mut self.0;
        for parent in parents {
            here = here.get_mut(parent)?.as_object_mut()?;
        }
        if !is_wanted(here.get(last)?) {
            return None;
        }
        here.remove(last).filter(|value| !value.is_null())
    }
}

fn leaves(path: &str, value: &Value, paths: &mut Vec<String>) {
    match value {
        Value::Null => {}
        Value::Array(list) if list.is_empty() => {}
        Value::Object(map) => {
            for (key, value) in map {
                leaves(&format!("{path}.{key}"), value, paths);
            }
        }
        _ => paths.push(path.to_owned()),
    }
}

/// Returns whether Go's templates regard a value as true.
pub(crate) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Returns a scalar as the templates print it; `None` for another value.
pub(crate) fn text(value: &Value) -> Option<String> {
    match value {
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn old(value: Value) -> OldValues {
        match value {
            Value::Object(map) => OldValues::new(map),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn what_is_read_is_gone_and_the_rest_is_unread() {
        let mut values = old(json!({
            "host": {"port": 8181, "extra": 1, "none": null}, "image": {"tag": "x"}, "empty": {},
            "list": [], "resources": "x",
        }));
        assert_eq!(values.take_text("host.port").as_deref(), Some("8181"));
        assert_eq!(values.take("host.port"), None);
        assert_eq!(values.take("image.tag.deeper"), None);
        assert_eq!(values.take_map("resources"), None);
        let mut unread = values.unread();
        unread.sort();
        assert_eq!(unread, ["host.extra", "image.tag", "resources"]);
    }

    #[test]
    fn truth_is_that_of_go_templates() {
        for (value, expected) in [
            (json!(false), false),
            (json!("false"), true),
            (json!(""), false),
            (json!(0), false),
            (json!({}), false),
            (json!(["x"]), true),
            (json!(null), false),
        ] {
            assert_eq!(is_true(&value), expected, "{value}");
        }
    }
}
