//! What becomes of each ConfigMap, as kube-mgmt writes it back.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::error::LoadError;
use crate::syntax::Syntax;

/// Annotation that kube-mgmt keeps a ConfigMap's status in.
pub const STATUS_ANNOTATION: &str = "openpolicyagent.org/kube-mgmt-status";

/// What became of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyStatus {
    /// It is in use.
    Ok {
        /// The syntax each entry was read as; empty for data.
        syntax: BTreeMap<String, Syntax>,
        /// Whether verdicts may change by the passing of time.
        reads_time: bool,
        /// What the author should know all the same, in sentences.
        warnings: Vec<String>,
    },
    /// It is taken for neither policies nor data, where every ConfigMap may be policies.
    Ignored,
    /// It is not in use as it is.
    Error {
        /// What is wrong, with entry and line.
        error: LoadError,
        /// The version before it goes on being asked.
        keeps_last_good: bool,
    },
}

impl PolicyStatus {
    /// As kube-mgmt writes it, with fields of ours beside its own.
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
                "reason": "no entry is named *.rego or begins with package",
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
