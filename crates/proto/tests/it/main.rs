//! Compatibility of the protocol with other versions.
//!
//! `tests/schemas` keeps the protocol of each released version. Messages are built from those files
//! by an implementation that shares no code with the generated types, and read by today's code, and
//! the reverse. Add a copy of the protocol with each release; never change an existing one.

#![cfg(test)]

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;
use protox::prost_reflect::ReflectMessage as _;
use protox::prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value,
};
use rolegate_core::session::{Failure, FailureKind};
use rolegate_proto::v1;

const FILE: &str = "rolegate/v1/broker.proto";

fn schema(folder: &Path) -> DescriptorPool {
    let files = protox::compile([FILE], [folder]).unwrap();
    DescriptorPool::from_file_descriptor_set(files).unwrap()
}

fn crate_folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn today() -> DescriptorPool {
    schema(&crate_folder("proto"))
}

/// Returns the protocol of each version that today's code must be compatible with.
fn earlier() -> Vec<(String, DescriptorPool)> {
    let entries = std::fs::read_dir(crate_folder("tests/schemas")).unwrap();
    let all: Vec<_> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, schema(&entry.path()))
        })
        .collect();
    assert!(!all.is_empty());
    all
}

/// Returns today's protocol with what a later version may add to it: a field in each message, and
/// another variant of each oneof and enum.
fn later() -> DescriptorPool {
    let text = std::fs::read_to_string(crate_folder("proto").join(FILE)).unwrap();
    let mut later = String::new();
    let mut in_message = false;
    for line in text.lines() {
        let declaration = line.trim_start();
        if declaration.starts_with("message ") && declaration.ends_with("{}") {
            later += &line.replace("{}", "{ string added = 2000; }");
        } else {
            later += line;
        }
        later.push('\n');
        in_message |= declaration.starts_with("message ");
        if !in_message || !declaration.ends_with('{') {
            continue;
        }
        if declaration.starts_with("message ") {
            later += "string added = 2000;\n";
        } else if declaration.starts_with("oneof ") {
            later += "bytes another = 2001;\n";
        }
    }
    // The first value of an enum is zero, so the new one follows it.
    for first in ["TEMPORARY = 0;", "NONE = 0;"] {
        let prefix = first.chars().next().unwrap();
        assert_eq!(later.matches(first).count(), 1);
        later = later.replace(first, &format!("{first}\n{prefix}_ADDED = 99;"));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, later).unwrap();
    schema(folder.path())
}

/// Returns messages in which, taken together, each field has a value other than its default, and
/// each variant of a oneof and each value of an enum occurs.
fn samples(message: &MessageDescriptor) -> Vec<DynamicMessage> {
    let mut fields: Vec<(FieldDescriptor, Vec<Value>)> = Vec::new();
    for field in message.fields() {
        let mut values = values(&field.kind());
        if field.is_list() {
            values = vec![Value::List(values)];
        }
        fields.push((field, values));
    }
    let in_oneof = |field: &FieldDescriptor| {
        let oneof = field.containing_oneof();
        oneof.is_some_and(|oneof| !oneof.is_synthetic())
    };
    let mut whole = DynamicMessage::new(message.clone());
    for (field, values) in fields.iter().filter(|(field, _)| !in_oneof(field)) {
        whole.set_field(field, values[0].clone());
    }
    let mut all = vec![whole.clone()];
    for (field, values) in &fields {
        let first = usize::from(!in_oneof(field));
        for value in &values[first..] {
            let mut one = whole.clone();
            one.set_field(field, value.clone());
            all.push(one);
        }
    }
    all
}

fn values(kind: &Kind) -> Vec<Value> {
    match kind {
        Kind::Message(message) => samples(message).into_iter().map(Value::Message).collect(),
        Kind::Enum(kinds) => {
            let numbers = kinds.values().map(|value| value.number());
            let set = numbers.filter(|number| *number != 0);
            set.map(Value::EnumNumber).collect()
        }
        Kind::String => vec![Value::String("text".to_owned())],
        Kind::Bytes => vec![Value::Bytes(vec![10, 0, 0, 1].into())],
        Kind::Bool => vec![Value::Bool(true)],
        Kind::Uint32 => vec![Value::U32(7)],
        Kind::Uint64 => vec![Value::U64(7 << 40)],
        Kind::Int64 => vec![Value::I64(-7 << 40)],
        other => panic!("a kind that the protocol does not use: {other:?}"),
    }
}

/// Fails unless each field of `earlier`'s type has the same value in both.
fn assert_agree(earlier: &DynamicMessage, later: &DynamicMessage) {
    for field in earlier.descriptor().fields() {
        let path = field.full_name().to_owned();
        assert_eq!(
            earlier.has_field(&field),
            later.has_field_by_number(field.number()),
            "{path}"
        );
        if !earlier.has_field(&field) {
            continue;
        }
        let there = later.get_field_by_number(field.number()).unwrap();
        assert_values_agree(&path, &earlier.get_field(&field), &there);
    }
}

fn assert_values_agree(path: &str, earlier: &Value, later: &Value) {
    match (earlier, later) {
        (Value::Message(earlier), Value::Message(later)) => assert_agree(earlier, later),
        (Value::List(earlier), Value::List(later)) => {
            assert_eq!(earlier.len(), later.len(), "{path}");
            for (earlier, later) in earlier.iter().zip(later) {
                assert_values_agree(path, earlier, later);
            }
        }
        _ => assert_eq!(earlier, later, "{path}"),
    }
}

/// Reads and writes a message by today's generated types.
fn by_today(name: &str, bytes: &[u8]) -> Vec<u8> {
    match name {
        "FromAgent" => v1::FromAgent::decode(bytes).unwrap().encode_to_vec(),
        "ToAgent" => v1::ToAgent::decode(bytes).unwrap().encode_to_vec(),
        other => panic!("{other}"),
    }
}

fn message(schema: &DescriptorPool, name: &str) -> MessageDescriptor {
    let name = format!("rolegate.v1.{name}");
    schema.get_message_by_name(&name).unwrap()
}

#[test]
fn messages_of_earlier_versions_are_read_completely() {
    for (version, schema) in earlier() {
        for name in ["FromAgent", "ToAgent"] {
            let message = message(&schema, name);
            let all = samples(&message);
            assert!(all.len() > 3, "{version} {name}: {}", all.len());
            for sample in all {
                let back = by_today(name, &sample.encode_to_vec());
                let back = DynamicMessage::decode(message.clone(), &*back).unwrap();
                assert_agree(&sample, &back);
            }
        }
    }
}

#[test]
fn earlier_versions_read_what_they_know_of_todays_messages() {
    for (_, schema) in earlier() {
        for name in ["FromAgent", "ToAgent"] {
            for sample in samples(&message(&today(), name)) {
                let bytes = by_today(name, &sample.encode_to_vec());
                let read = DynamicMessage::decode(message(&schema, name), &*bytes).unwrap();
                assert_agree(&read, &sample);
            }
        }
    }
}

#[test]
fn the_protocol_keeps_all_fields_and_values_of_earlier_versions() {
    let today = today();
    for (version, schema) in earlier() {
        let lines = |schema: &DescriptorPool| -> BTreeSet<String> {
            let messages = schema.all_messages();
            let fields = messages.flat_map(|message| message.fields().collect::<Vec<_>>());
            let values = |of: EnumDescriptor| of.values().collect::<Vec<_>>();
            let values = schema.all_enums().flat_map(values);
            let fields = fields.map(|field| {
                let oneof = field.containing_oneof();
                let oneof = oneof.map(|oneof| oneof.name().to_owned());
                let (name, number) = (field.full_name(), field.number());
                let (cardinality, kind) = (field.cardinality(), field.kind());
                format!("{cardinality:?} {kind:?} {name} = {number} in {oneof:?}")
            });
            let values = values.map(|value| format!("{} = {}", value.full_name(), value.number()));
            fields.chain(values).collect()
        };
        let (before, now) = (lines(&schema), lines(&today));
        let gone: Vec<_> = before.difference(&now).collect();
        assert!(gone.is_empty(), "{version}: {gone:#?}");
    }
}

#[test]
fn additions_of_later_versions_do_no_harm() {
    let later = later();
    for name in ["FromAgent", "ToAgent"] {
        for sample in samples(&message(&later, name)) {
            let bytes = by_today(name, &sample.encode_to_vec());
            let read = DynamicMessage::decode(message(&today(), name), &*bytes).unwrap();
            assert_agree(&read, &sample);
        }
    }
    // A body, and a pod's decision, of a kind that today's code does not know.
    let decode = |name: &str, number: u32| {
        let mut sample = DynamicMessage::new(message(&later, name));
        sample.set_field_by_number(number, Value::Bytes(vec![1].into()));
        sample.encode_to_vec()
    };
    let body = v1::ToAgent::decode(&*decode("ToAgent", 2001)).unwrap();
    assert_eq!(body.body, None);
    let body = v1::FromAgent::decode(&*decode("FromAgent", 2001)).unwrap();
    assert_eq!(body.body, None);
    let pod = v1::Pod::decode(&*decode("Pod", 2001)).unwrap();
    assert_eq!(pod.authorization, None);
    let mut failure = DynamicMessage::new(message(&later, "Failure"));
    for number in [1, 3] {
        failure.set_field_by_number(number, Value::EnumNumber(99));
    }
    failure.set_field_by_number(2, Value::String("Code".to_owned()));
    let failure = v1::Failure::decode(&*failure.encode_to_vec()).unwrap();
    let failure = Failure::try_from(failure).unwrap();
    assert_eq!(
        (failure.kind, failure.cause),
        (FailureKind::Temporary, None)
    );
}
