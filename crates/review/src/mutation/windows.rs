//! Detects Windows pods, whose containers see mounted files below `C:\`.

use crate::field_path::{FieldRef, Malformed};

/// The labels of nodes that name the operating system.
const LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];
const WINDOWS: &str = "windows";

/// Returns true if a pod runs on Windows nodes only: by `spec.os.name`, the node selector, or every
/// term of the required node affinity.
pub(super) fn is_windows(spec: &FieldRef<'_>) -> Result<bool, Malformed> {
    if let Some(os) = spec.field("os")?
        && let Some(name) = os.text("name")?
    {
        return Ok(name == WINDOWS);
    }
    let selector = spec.texts("nodeSelector")?;
    if LABELS
        .iter()
        .any(|label| selector.get(label) == Some(WINDOWS))
    {
        return Ok(true);
    }
    let required = spec.at(&[
        "affinity",
        "nodeAffinity",
        "requiredDuringSchedulingIgnoredDuringExecution",
    ])?;
    let Some(required) = required else {
        return Ok(false);
    };
    // A node must match one of the terms, so all of them must require Windows.
    let terms = required.list("nodeSelectorTerms")?;
    for term in &terms {
        if !requires_windows(term)? {
            return Ok(false);
        }
    }
    Ok(!terms.is_empty())
}

fn requires_windows(term: &FieldRef<'_>) -> Result<bool, Malformed> {
    for expression in term.list("matchExpressions")? {
        let is_os = expression
            .text("key")?
            .is_some_and(|key| LABELS.contains(&key));
        if !is_os || expression.text("operator")? != Some("In") {
            continue;
        }
        let values = expression.list("values")?;
        if !values.is_empty()
            && values
                .iter()
                .all(|value| value.value.as_text() == Some(WINDOWS))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the path of a mounted file as a container of the pod sees it.
pub(super) fn seen_path(path: &str, is_windows: bool) -> String {
    if is_windows {
        format!("C:{}", path.replace('/', "\\"))
    } else {
        path.to_owned()
    }
}
