//! Namespaces and their role annotations, raw and compiled.

use std::sync::{Arc, OnceLock};

use crate::annotation::normalized;
use crate::arn::{BaseArn, RoleArn, resolve};
use crate::labels::Labels;
use crate::pattern::{MAX_COMPILED, Pattern, PatternFormat};

/// The label that the API server sets on every namespace to its name. It cannot be changed.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace as its source reports it. Annotations are normalized (see [`rule_text`] and
/// [`crate::annotation::given`]) but not compiled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// kube2iam's list of allowed roles (JSON), see [`crate::annotation::ALLOWED_ROLES`].
    pub allowed_roles: Option<Arc<str>>,
    /// kiam's permitted roles (regular expression), see [`crate::annotation::PERMITTED`].
    pub permitted: Option<Arc<str>>,
    /// The role of pods that request none, see [`crate::annotation::DEFAULT_ROLE`].
    pub default_role: Option<Arc<str>>,
    /// The entries of `metadata.labels` that rules read.
    pub labels: Labels,
    /// True if `allowed_roles` and `permitted` were omitted because no rule reads them.
    pub without_roles: bool,
}

/// Maximum size of an annotation with rules, in bytes. Sources store a little more of a longer one,
/// so that it is rejected and not mistaken for another text.
const MAX_RULES: usize = 8 * 1024;
/// Maximum number of patterns in a namespace's list of allowed roles.
const MAX_PATTERNS: usize = 256;
/// Maximum memory for all compiled patterns of one annotation, in bytes.
const MAX_MEMORY: usize = 512 * 1024;

/// The rules of a namespace: its labels, and its annotations, compiled on first use. An annotation
/// that does not compile is stored as its error message and allows nothing.
#[derive(Debug, Clone)]
pub struct NamespaceRules {
    /// The entries of `metadata.labels` that rules read.
    pub labels: Labels,
    namespace: Namespace,
    base: Option<BaseArn>,
    format: PatternFormat,
    /// Compiled lazily: owners of namespaces can make this costly, and most namespaces may have no
    /// pods that need it.
    compiled: OnceLock<Box<CompiledAnnotations>>,
}

/// The compiled annotations of a namespace.
#[derive(Debug, Clone)]
pub struct CompiledAnnotations {
    /// Patterns of allowed roles, if the annotation is present.
    pub allowed: Option<Result<Vec<Pattern>, String>>,
    /// Patterns of permitted roles, if the annotation is present. One match suffices.
    pub permitted: Option<Result<Vec<Pattern>, String>>,
    /// The role of pods that request none.
    pub default_role: Option<Result<RoleArn, String>>,
}

impl NamespaceRules {
    /// Creates the rules of `namespace`. `base` completes role names.
    pub fn new(namespace: &Namespace, base: Option<&BaseArn>, format: PatternFormat) -> Self {
        Self {
            labels: namespace.labels.clone(),
            namespace: namespace.clone(),
            base: base.cloned(),
            format,
            compiled: OnceLock::new(),
        }
    }

    /// Creates the rules of a namespace without annotations.
    pub fn from_labels(labels: Labels) -> Self {
        let namespace = Namespace {
            labels,
            ..Namespace::default()
        };
        Self::new(&namespace, None, PatternFormat::default())
    }

    /// Returns the namespace as reported.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns the compiled annotations.
    pub fn annotations(&self) -> &CompiledAnnotations {
        self.compiled.get_or_init(|| {
            let base = self.base.as_ref();
            let namespace = &self.namespace;
            Box::new(CompiledAnnotations {
                allowed: namespace
                    .allowed_roles
                    .as_deref()
                    .map(|text| allowed(text, base, self.format)),
                permitted: namespace
                    .permitted
                    .as_deref()
                    .map(|text| permitted(text, base)),
                default_role: namespace
                    .default_role
                    .as_deref()
                    .filter(|role| !role.is_empty())
                    .map(|role| resolve(role, base).map_err(|error| error.to_string())),
            })
        })
    }
}

/// Normalizes an annotation with rules and truncates it to the stored size. An empty value is
/// preserved, since it may mean "nothing is allowed".
pub fn rule_text(text: &str) -> Arc<str> {
    let text = normalized(text);
    // Keeps one character above the limit, so that compiling rejects a truncated annotation.
    let kept = text.get(..text.floor_char_boundary(MAX_RULES + 4));
    kept.unwrap_or(text).into()
}

/// Parses kube2iam's list of allowed roles and normalizes its patterns.
///
/// # Errors
/// Returns a message if the list is malformed.
pub fn allowed_patterns(text: &str) -> Result<Vec<String>, String> {
    check_length(text)?;
    let mut list: Vec<String> = serde_json::from_str(text)
        .map_err(|_| "not a JSON list of strings such as [\"team-*\"]".to_owned())?;
    if list.len() > MAX_PATTERNS {
        return Err(format!("more than {MAX_PATTERNS} patterns"));
    }
    for pattern in &mut list {
        *pattern = normalized(pattern).to_owned();
    }
    Ok(list)
}

fn allowed(
    text: &str,
    base: Option<&BaseArn>,
    format: PatternFormat,
) -> Result<Vec<Pattern>, String> {
    let list = allowed_patterns(text)?;
    let memory = MAX_MEMORY / list.len().max(1);
    list.iter()
        .map(|pattern| Pattern::for_roles(pattern, format, base, memory).map_err(|e| e.to_string()))
        .collect()
}

fn check_length(text: &str) -> Result<(), String> {
    if text.len() > MAX_RULES {
        return Err(format!("longer than {MAX_RULES} bytes"));
    }
    Ok(())
}

/// kiam v4 and later match the whole ARN; earlier versions match anywhere in the role as written. A
/// bare name could never match a whole ARN, so it is also matched against the part after the base
/// ARN.
fn permitted(text: &str, base: Option<&BaseArn>) -> Result<Vec<Pattern>, String> {
    check_length(text)?;
    let whole = Pattern::whole(text).map_err(|error| error.to_string())?;
    let named = Pattern::for_roles(text, PatternFormat::Regexp, base, MAX_COMPILED)
        .map_err(|e| e.to_string())?;
    Ok(vec![whole, named])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(text: &str, format: PatternFormat) -> Result<Vec<Pattern>, String> {
        allowed(text, None, format)
    }

    fn list(pattern: &str, count: usize) -> String {
        serde_json::Value::from(vec![pattern; count]).to_string()
    }

    #[test]
    fn annotations_may_have_8_kib() {
        // Spaces after the list are part of the annotation.
        let padded = |length: usize| format!("{:length$}", r#"["a"]"#);
        assert_eq!(allows(&padded(8192), PatternFormat::Glob).unwrap().len(), 1);
        let error = allows(&padded(8193), PatternFormat::Glob).unwrap_err();
        assert_eq!(error, "longer than 8192 bytes");
        let error = permitted(&"a".repeat(8193), None).unwrap_err();
        assert_eq!(error, "longer than 8192 bytes");
    }

    #[test]
    fn long_annotations_are_cut_and_stay_invalid() {
        for character in ["a", "é", "€", "🦀"] {
            let kept = rule_text(&character.repeat(20_000));
            assert!(kept.len() < 8200, "{}", kept.len());
            assert!(permitted(&kept, None).is_err(), "{character}");
        }
    }

    #[test]
    fn a_list_may_have_256_patterns() {
        let most = allows(&list("a", 256), PatternFormat::Regexp);
        assert_eq!(most.unwrap().len(), 256);
        let error = allows(&list("a", 257), PatternFormat::Regexp).unwrap_err();
        assert_eq!(error, "more than 256 patterns");
    }

    #[test]
    fn patterns_share_the_memory_of_their_list() {
        let large = "[a-z]{200}";
        assert!(allows(&list(large, 1), PatternFormat::Regexp).is_ok());
        assert!(allows(&list(large, 200), PatternFormat::Regexp).is_err());
    }
}
