//! Supplied built-in functions, which the interpreter lacks or implements differently from OPA, and
//! the names of unsupported ones.

mod arithmetic;
mod bounded;
mod casts;
mod cidr_merge;
mod deviating;
mod encodings;
pub(crate) mod failures;
mod format;
mod glob;
mod go_class;
mod go_duration;
mod go_float;
mod go_fmt;
mod go_layout;
mod go_quote;
mod go_regex;
mod go_template;
mod go_time;
mod hashes;
mod json;
mod missing;
mod networks;
mod regexes;
mod semver;
mod strings;
mod subset;
mod times;
mod units;
mod uri;
mod yaml;

#[cfg(test)]
mod rows;

use std::sync::Arc;

use regorus::unstable::BUILTINS;
use regorus::{Engine, Value};

pub(crate) use go_fmt::FRACTION;
pub(crate) use json::marshal;
pub(crate) use missing::missing;
pub use missing::{MissingBuiltin, missing_builtins};
use regexes::Regexes;

/// The built-in that reads the clock. It returns the time of the evaluation.
pub(crate) const NOW: &str = "time.now_ns";

/// Maximum size of a string that a built-in produces, in bytes.
const MAX_TEXT: usize = 1024 * 1024;
/// Maximum number of elements that a built-in produces.
const MAX_ELEMENTS: usize = 65_536;

/// The number of a built-in's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// Any number.
    Any,
    /// This number, plus one if the result is passed as the last argument.
    Fixed(usize),
}

/// A supplied function. An error ends the evaluation and therefore denies. For OPA's undefined
/// results it returns [`Value::Undefined`].
type Function = fn(&[Value]) -> anyhow::Result<Value>;

/// A supplied function that compiles patterns.
type PatternFunction = fn(&Regexes, &[Value]) -> anyhow::Result<Value>;

#[derive(Clone, Copy)]
enum Supplied {
    Plain(Function),
    Pattern(PatternFunction),
}

/// All supplied functions: name, number of arguments, function.
const SUPPLIED: &[(&str, u8, Supplied)] = &[
    ("all", 1, Supplied::Plain(casts::all)),
    ("and", 2, Supplied::Plain(arithmetic::and)),
    ("any", 1, Supplied::Plain(casts::any)),
    ("array.concat", 2, Supplied::Plain(deviating::array_concat)),
    ("array.flatten", 1, Supplied::Plain(strings::flatten)),
    (
        "base64.decode",
        1,
        Supplied::Plain(encodings::base64_decode),
    ),
    ("base64.encode", 1, Supplied::Plain(bounded::base64_encode)),
    (
        "base64.is_valid",
        1,
        Supplied::Plain(encodings::base64_is_valid),
    ),
    (
        "base64url.decode",
        1,
        Supplied::Plain(encodings::base64url_decode),
    ),
    (
        "base64url.encode",
        1,
        Supplied::Plain(bounded::base64url_encode),
    ),
    (
        "base64url.encode_no_pad",
        1,
        Supplied::Plain(bounded::base64url_encode_no_pad),
    ),
    ("bits.and", 2, Supplied::Plain(arithmetic::bits_and)),
    ("bits.lsh", 2, Supplied::Plain(deviating::shift_left)),
    ("bits.negate", 1, Supplied::Plain(arithmetic::bits_negate)),
    ("bits.or", 2, Supplied::Plain(arithmetic::bits_or)),
    ("bits.rsh", 2, Supplied::Plain(arithmetic::shift_right)),
    ("bits.xor", 2, Supplied::Plain(arithmetic::bits_xor)),
    ("cast_array", 1, Supplied::Plain(casts::array)),
    ("cast_boolean", 1, Supplied::Plain(casts::boolean)),
    ("cast_null", 1, Supplied::Plain(casts::null)),
    ("cast_object", 1, Supplied::Plain(casts::object)),
    ("cast_set", 1, Supplied::Plain(casts::set)),
    ("cast_string", 1, Supplied::Plain(casts::string)),
    ("concat", 2, Supplied::Plain(strings::concat)),
    ("count", 1, Supplied::Plain(arithmetic::count)),
    ("crypto.hmac.equal", 2, Supplied::Plain(hashes::equal)),
    ("crypto.hmac.sha1", 2, Supplied::Plain(hashes::hmac_sha1)),
    (
        "crypto.hmac.sha256",
        2,
        Supplied::Plain(hashes::hmac_sha256),
    ),
    (
        "crypto.hmac.sha512",
        2,
        Supplied::Plain(hashes::hmac_sha512),
    ),
    ("crypto.sha1", 1, Supplied::Plain(hashes::sha1)),
    ("crypto.sha256", 1, Supplied::Plain(hashes::sha256)),
    ("div", 2, Supplied::Plain(arithmetic::divide)),
    ("glob.match", 3, Supplied::Pattern(glob::matches)),
    ("glob.quote_meta", 1, Supplied::Plain(glob::quote_meta)),
    (
        "graph.reachable_paths",
        2,
        Supplied::Plain(bounded::reachable_paths),
    ),
    ("hex.decode", 1, Supplied::Plain(encodings::hex_decode)),
    ("hex.encode", 1, Supplied::Plain(bounded::hex_encode)),
    ("indexof", 2, Supplied::Plain(strings::index_of)),
    ("indexof_n", 2, Supplied::Plain(strings::index_of_n)),
    ("json.filter", 2, Supplied::Plain(subset::filter)),
    ("json.is_valid", 1, Supplied::Plain(json::is_valid)),
    ("json.marshal", 1, Supplied::Plain(json::marshal_argument)),
    (
        "json.marshal_with_options",
        2,
        Supplied::Plain(json::marshal_with_options),
    ),
    ("json.remove", 2, Supplied::Plain(subset::remove)),
    ("json.unmarshal", 1, Supplied::Plain(json::unmarshal)),
    ("lower", 1, Supplied::Plain(strings::lower)),
    ("minus", 2, Supplied::Plain(arithmetic::minus)),
    ("mul", 2, Supplied::Plain(arithmetic::times)),
    ("net.cidr_contains", 2, Supplied::Plain(networks::contains)),
    (
        "net.cidr_contains_matches",
        2,
        Supplied::Plain(networks::contains_matches),
    ),
    ("net.cidr_expand", 1, Supplied::Plain(networks::expand)),
    (
        "net.cidr_intersects",
        2,
        Supplied::Plain(networks::intersects),
    ),
    ("net.cidr_is_valid", 1, Supplied::Plain(networks::is_valid)),
    ("net.cidr_merge", 1, Supplied::Plain(networks::merge)),
    ("net.cidr_overlap", 2, Supplied::Plain(networks::contains)),
    ("numbers.range", 2, Supplied::Plain(deviating::range)),
    (
        "numbers.range_step",
        3,
        Supplied::Plain(deviating::range_step),
    ),
    ("object.subset", 2, Supplied::Plain(subset::subset)),
    ("or", 2, Supplied::Plain(arithmetic::or)),
    ("plus", 2, Supplied::Plain(arithmetic::plus)),
    ("re_match", 2, Supplied::Pattern(regexes::matches)),
    (
        "regex.find_all_string_submatch_n",
        3,
        Supplied::Pattern(regexes::find_submatches),
    ),
    ("regex.find_n", 3, Supplied::Pattern(regexes::find)),
    ("regex.is_valid", 1, Supplied::Pattern(regexes::is_valid)),
    ("regex.match", 2, Supplied::Pattern(regexes::matches)),
    ("regex.replace", 3, Supplied::Pattern(regexes::replace)),
    ("regex.split", 2, Supplied::Pattern(regexes::split)),
    (
        "regex.template_match",
        4,
        Supplied::Pattern(regexes::template_match),
    ),
    ("rem", 2, Supplied::Plain(arithmetic::remainder)),
    ("replace", 3, Supplied::Plain(strings::replace)),
    ("semver.compare", 2, Supplied::Plain(semver::compare)),
    ("semver.is_valid", 1, Supplied::Plain(semver::is_valid)),
    ("set_diff", 2, Supplied::Plain(casts::set_diff)),
    ("split", 2, Supplied::Plain(strings::split)),
    ("sprintf", 2, Supplied::Plain(format::sprintf)),
    ("strings.count", 2, Supplied::Plain(strings::count)),
    ("strings.replace_n", 2, Supplied::Plain(strings::replace_n)),
    ("strings.split_n", 3, Supplied::Plain(strings::split_n)),
    ("substring", 3, Supplied::Plain(strings::substring)),
    ("time.add_date", 4, Supplied::Plain(times::add_date)),
    ("time.clock", 1, Supplied::Plain(times::clock)),
    ("time.date", 1, Supplied::Plain(times::date)),
    ("time.diff", 2, Supplied::Plain(times::diff)),
    ("time.format", 1, Supplied::Plain(times::format)),
    (
        "time.parse_duration_ns",
        1,
        Supplied::Plain(times::parse_duration),
    ),
    ("time.parse_ns", 2, Supplied::Plain(times::parse)),
    (
        "time.parse_rfc3339_ns",
        1,
        Supplied::Plain(times::parse_rfc3339),
    ),
    ("time.weekday", 1, Supplied::Plain(times::weekday)),
    ("to_number", 1, Supplied::Plain(units::to_number)),
    ("units.parse", 1, Supplied::Plain(units::parse)),
    ("units.parse_bytes", 1, Supplied::Plain(units::parse_bytes)),
    ("upper", 1, Supplied::Plain(strings::upper)),
    ("uri.is_valid", 1, Supplied::Plain(uri::is_valid)),
    ("uri.parse", 1, Supplied::Plain(uri::parse)),
    (
        "urlquery.decode",
        1,
        Supplied::Plain(encodings::query_decode),
    ),
    (
        "urlquery.decode_object",
        1,
        Supplied::Plain(encodings::query_decode_object),
    ),
    (
        "urlquery.encode",
        1,
        Supplied::Plain(encodings::query_encode),
    ),
    (
        "urlquery.encode_object",
        1,
        Supplied::Plain(encodings::query_encode_object),
    ),
    ("walk", 1, Supplied::Plain(bounded::walk)),
    ("yaml.is_valid", 1, Supplied::Plain(yaml::is_valid)),
    ("yaml.unmarshal", 1, Supplied::Plain(yaml::unmarshal)),
];

/// Returns the number of a built-in's arguments; `None` if it does not exist.
pub(crate) fn arguments(name: &str) -> Option<Arguments> {
    if name == "print" {
        return Some(Arguments::Any);
    }
    let operator = OPERATORS.iter().find(|(operator, ..)| *operator == name);
    if let Some((_, count, _)) = operator {
        return Some(Arguments::Fixed(usize::from(*count)));
    }
    if missing(name).is_some() {
        return None;
    }
    let known = BUILTINS.get(name).map(|(_, count)| *count);
    let ours = SUPPLIED
        .iter()
        .find(|(ours, ..)| *ours == name)
        .map(|(_, count, _)| *count);
    ours.or(known)
        .map(|count| Arguments::Fixed(usize::from(count)))
}

/// Returns the index of the argument of a built-in that is a pattern.
pub(crate) fn pattern_place(name: &str) -> Option<usize> {
    match name {
        "regex.replace" => Some(1),
        "glob.match"
        | "re_match"
        | "regex.find_all_string_submatch_n"
        | "regex.find_n"
        | "regex.match"
        | "regex.split" => Some(0),
        _ => None,
    }
}

/// Validates a pattern literal of a policy.
///
/// # Errors
/// Returns an error if the pattern is invalid or exceeds a limit.
pub(crate) fn check_pattern(name: &str, pattern: &str) -> Result<(), String> {
    let checked = match name {
        "glob.match" => glob::check(pattern),
        _ => go_regex::compile(pattern).map(|_| ()),
    };
    checked.map_err(|error| error.to_string())
}

/// Operators under the names that they have in lowered modules. Policies cannot call them.
const OPERATORS: [(&str, u8, Function); 7] = [
    ("rolegate_and", 2, arithmetic::and),
    ("rolegate_div", 2, arithmetic::divide),
    ("rolegate_minus", 2, arithmetic::minus),
    ("rolegate_mul", 2, arithmetic::times),
    ("rolegate_or", 2, arithmetic::or),
    ("rolegate_plus", 2, arithmetic::plus),
    ("rolegate_rem", 2, arithmetic::remainder),
];

/// Returns true if a name is that of an operator.
pub(crate) fn is_operator(name: &str) -> bool {
    OPERATORS.iter().any(|(operator, ..)| *operator == name)
}

/// Adds the supplied functions that are called to an engine. `patterns` are compiled immediately:
/// built-ins with the pattern literals passed to them.
pub(crate) fn supply<'a>(
    engine: &mut Engine,
    is_called: impl Fn(&str) -> bool,
    patterns: impl Iterator<Item = (&'a str, &'a str)>,
) -> anyhow::Result<()> {
    let regexes = Arc::new(Regexes::default());
    for (name, pattern) in patterns.filter(|(name, _)| *name != "glob.match") {
        // An error was reported at load, or is reported when the pattern is used.
        let _ = (name, regexes.regex(pattern));
    }
    for (name, count, function) in OPERATORS {
        add(engine, name, count, function)?;
    }
    for (name, count, function) in SUPPLIED.iter().filter(|(name, ..)| is_called(name)) {
        match *function {
            Supplied::Plain(function) => add(engine, name, *count, function)?,
            Supplied::Pattern(function) => {
                let regexes = regexes.clone();
                add(engine, name, *count, move |arguments| {
                    function(&regexes, arguments)
                })?;
            }
        }
    }
    Ok(())
}

/// Returns true if the interpreter has the built-in itself, so that a `with` can replace it.
pub(crate) fn is_native(name: &str) -> bool {
    name == "print" || BUILTINS.contains_key(name)
}

/// Adds an unsupported built-in to an engine, for a `with` to replace. Calling it is an error.
pub(crate) fn supply_missing(
    engine: &mut Engine,
    name: &str,
    why: &'static str,
    count: usize,
) -> anyhow::Result<()> {
    let called = name.to_owned();
    add(engine, name, u8::try_from(count)?, move |_| {
        anyhow::bail!("the built-in {called} is not supported: {why}")
    })
}

/// Adds a function to an engine. Its errors are recorded, since the interpreter drops those of
/// functions with several bodies.
fn add(
    engine: &mut Engine,
    name: &str,
    count: u8,
    function: impl Fn(&[Value]) -> anyhow::Result<Value> + Clone + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let called = move |arguments: Vec<Value>| function(&arguments).inspect_err(failures::note);
    engine.add_extension(name.to_owned(), count, Box::new(called))
}

/// Returns a string argument.
fn text(arguments: &[Value], place: usize) -> Option<&str> {
    match arguments.get(place) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// Returns the elements of an array or a set.
fn elements(value: Option<&Value>) -> Option<Vec<&Value>> {
    match value? {
        Value::Array(array) => Some(array.iter().collect()),
        Value::Set(set) => Some(set.iter_sorted().collect()),
        _ => None,
    }
}

/// Returns a string value, or an error if it is too long.
fn bounded(text: String) -> anyhow::Result<Value> {
    anyhow::ensure!(
        text.len() <= MAX_TEXT,
        "a built-in produced more than {MAX_TEXT} bytes of text"
    );
    Ok(Value::from(text))
}

/// Returns a set of values.
fn set_of(values: impl IntoIterator<Item = Value>) -> Value {
    regorus::value::Set::from_iter(values).into_value()
}
