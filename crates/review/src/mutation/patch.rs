//! `add` operations of RFC 6902, and the JSON pointers of RFC 6901 in them.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::Value;

/// An `add` operation. It serializes as `{"op":"add","path":…,"value":…}`.
#[derive(Debug, Clone, PartialEq)]
pub struct AddOperation {
    /// The JSON pointer of the new value. It ends in `/-` to append to a list.
    pub path: String,
    /// The new value.
    pub value: Value,
}

impl Serialize for AddOperation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("AddOperation", 3)?;
        fields.serialize_field("op", "add")?;
        fields.serialize_field("path", &self.path)?;
        fields.serialize_field("value", &self.value)?;
        fields.end()
    }
}

/// A JSON pointer.
#[derive(Debug, Clone)]
pub(super) struct Pointer(String);

impl Pointer {
    pub(super) fn new(steps: &[&str]) -> Self {
        steps
            .iter()
            .fold(Self(String::new()), |pointer, step| pointer.field(step))
    }

    fn field(mut self, name: &str) -> Self {
        self.0.push('/');
        self.0.push_str(&name.replace('~', "~0").replace('/', "~1"));
        self
    }

    pub(super) fn entry(self, index: usize) -> Self {
        self.field(&index.to_string())
    }

    /// Appends the values to the list `name` of the object at this pointer. A list that does not
    /// exist is added with all values.
    pub(super) fn append(
        &self,
        operations: &mut Vec<AddOperation>,
        name: &str,
        exists: bool,
        values: Vec<Value>,
    ) {
        let list = self.clone().field(name);
        if values.is_empty() {
            return;
        }
        if exists {
            let path = String::from(list.field("-"));
            operations.extend(values.into_iter().map(|value| AddOperation {
                path: path.clone(),
                value,
            }));
        } else {
            operations.push(AddOperation {
                path: list.into(),
                value: values.into(),
            });
        }
    }
}

impl From<Pointer> for String {
    fn from(pointer: Pointer) -> Self {
        pointer.0
    }
}
