//! The status of a ConfigMap, in the form in which kube-mgmt writes it back.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::error::LoadError;
use crate::syntax::Syntax;

/// The annotation in which kube-mgmt stores a ConfigMap's status.
pub const STATUS_ANNOTATION: &str = "openpolicyagent.org/kube-mgmt-status";

/// The status of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyStatus {
    /// The ConfigMap is in use.
    Ok {
        /// The syntax of each entry; empty for data.
        syntax: BTreeMap<String, Syntax>,
        /// True if results can change with time alone.
        reads_time: bool,
        /// Warnings for the author, one sentence each.
        warnings: Vec<String>,
    },
    /// The ConfigMap is neither policies nor data, in a namespace where every ConfigMap may be
    /// policies.
    Ignored,
    /// The current version is rejected.
    Error {
        /// The error, with entry and line.
        error: LoadError,
        /// True if the previous version stays in use.
        keeps_last_good: bool,
    },
}

impl PolicyStatus {
    /// Returns the JSON that kube-mgmt writes, with additional fields.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Ok {
                syntax,
                reads_time,
                warnings,
            } => {
                let syntax: BTreeMap<_, _> = syntax
                    .iter()
                    .map(|(entry, syntax)| (entry.as_str(), syntax.as_str()))
                    .collect();
                if syntax.is_empty() {
                    json!({"status": "ok"})
                } else if warnings.is_empty() {
                    json!({"status": "ok", "syntax": syntax, "readsTime": reads_time})
                } else {
                    json!({
                        "status": "ok",
                        "syntax": syntax,
                        "readsTime": reads_time,
                        "warnings": warnings,
                    })
                }
            }
            Self::Ignored => json!({
                "status": "ignored",
                "reason": "no entry has a name *.rego or begins with package",
            }),
            Self::Error {
                error,
                keeps_last_good,
            } => json!({
                "status": "error",
                "error": {"code": error.code(), "message": error.to_string()},
                "keepsLastGood": keeps_last_good,
            }),
        }
    }
}
