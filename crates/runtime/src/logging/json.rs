//! JSON log lines, and list values of fields, which `tracing` does not have.

use std::cell::Cell;
use std::fmt::{self, Display};

use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::field::{DebugValue, Field, Visit, debug};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

thread_local! {
    /// The format of lists written on this thread, and whether one was written.
    static FORM: Cell<Form> = const { Cell::new(Form::Text) };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
    /// A list was written as JSON. The text of another value cannot forge this.
    JsonList,
}

/// A list as the value of a field: `[a, b]` in text, an array of strings in JSON.
pub struct List(Vec<String>);

/// Creates a list value of a field.
pub fn list(items: impl IntoIterator<Item = impl Display>) -> DebugValue<List> {
    let items = items.into_iter().map(|item| item.to_string());
    debug(List(items.collect()))
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if FORM.get() == Form::Text {
            return write!(f, "[{}]", self.0.join(", "));
        }
        FORM.set(Form::JsonList);
        write!(f, "{}", json!(self.0))
    }
}

/// One JSON object per line: time, level, message, fields and module.
#[derive(Debug)]
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut line = Line(format!(
            "{{\"timestamp\":\"{:.6}\",\"level\":\"{}\"",
            Timestamp::now(),
            metadata.level()
        ));
        event.record(&mut line);
        line.add("target", &metadata.target().into());
        writeln!(writer, "{}}}", line.0)
    }
}

/// A JSON object being written.
struct Line(String);

impl Line {
    fn add(&mut self, name: &str, value: &Value) {
        self.0.push_str(&format!(",{}:{value}", json!(name)));
    }
}

impl Visit for Line {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), &json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), &json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), &json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), &json!(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), &json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        FORM.set(Form::Json);
        let text = format!("{value:?}");
        let value = match FORM.replace(Form::Text) {
            Form::JsonList => serde_json::from_str(&text).unwrap_or(Value::String(text)),
            Form::Text | Form::Json => Value::String(text),
        };
        self.add(field.name(), &value);
    }
}
