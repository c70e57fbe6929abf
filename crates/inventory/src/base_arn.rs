//! Base ARNs that a decision may depend on, for rules whose base ARN is unknown.

use std::collections::BTreeSet;

use regex::Regex;
use rolegate_core::arn::BaseArn;
use serde_json::Value;

/// Maximum number of base ARNs to compare verdicts with if the base ARN is unknown.
pub(crate) const MAX_BASE_ARNS: usize = 64;

/// Returns the base ARNs that may change a decision about the objects: every prefix of each role's
/// ARN, and one of another account.
pub(crate) fn candidates<'v>(values: impl IntoIterator<Item = &'v Value>) -> Vec<BaseArn> {
    let mut texts = BTreeSet::new();
    if let Ok(pattern) = Regex::new("arn:[a-z-]+:iam::[0-9]{12}:role/[^\\s\"',\\]]*") {
        for value in values {
            collect(value, &pattern, &mut texts);
        }
    }
    let found = texts.iter().filter_map(|text| BaseArn::parse(text).ok());
    any_base().into_iter().chain(found).collect()
}

/// Returns a base ARN of an account that does not exist, which merely completes role names.
pub fn any_base() -> Option<BaseArn> {
    BaseArn::from_account("aws", "000000000000").ok()
}

/// Adds the base ARNs of all role ARNs in a value.
fn collect(value: &Value, pattern: &Regex, texts: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            for arn in pattern.find_iter(text) {
                let arn = arn.as_str();
                let ends = arn.match_indices('/').map(|(place, _)| place + 1);
                texts.extend(ends.filter_map(|end| arn.get(..end)).map(str::to_owned));
            }
        }
        Value::Array(all) => all.iter().for_each(|one| collect(one, pattern, texts)),
        Value::Object(fields) => fields.values().for_each(|one| collect(one, pattern, texts)),
        _ => {}
    }
}
