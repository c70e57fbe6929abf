//! Namespaces: the annotations that matter, raw and compiled.

use std::sync::{Arc, OnceLock};

use crate::annotation::normalized;
use crate::arn::{BaseArn, RoleArn, resolve};
use crate::key_values::KeyValues;
use crate::pattern::{MAX_COMPILED, Pattern, PatternFormat};

/// The label that the API server sets on every namespace to its name; not to be changed.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace as its source reports it. The annotations are normalized (see [`rule_text`] and
/// [`crate::annotation::given`]) and not yet compiled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// kube2iam's list of allowed roles (JSON), see [`crate::annotation::ALLOWED_ROLES`].
    pub allowed_roles: Option<Arc<str>>,
    /// kiam's permitted roles (regular expression), see [`crate::annotation::PERMITTED`].
    pub permitted: Option<Arc<str>>,
    /// The role of pods that name none, see [`crate::annotation::DEFAULT_ROLE`].
    pub default_role: Option<Arc<str>>,
    /// Those of `metadata.labels` that rules read.
    pub labels: KeyValues,
    /// True if `allowed_roles` and `permitted` were omitted because no rule reads them.
    pub without_roles: bool,
}

/// Longest annotation of rules that is read, bytes. Sources keep more of what is longer, so that it
/// is refused and not read as something else.
const MAX_RULES: usize = 8 * 1024;
/// Most patterns taken from one namespace's list of allowed roles.
const MAX_PATTERNS: usize = 256;
/// Memory of all compiled patterns of one annotation, bytes.
const MAX_MEMORY: usize = 512 * 1024;

/// A namespace's rules: its labels, and its annotations, which are compiled when they are first
/// looked at. What is broken stays as the sentence that says so, and allows nothing.
#[derive(Debug, Clone)]
pub struct NamespaceRules {
    /// Those of `metadata.labels` that rules read.
    pub labels: KeyValues,
    namespace: Namespace,
    base: Option<BaseArn>,
    format: PatternFormat,
    /// Owners of namespaces can make these costly, so those that no pod needs are left alone.
    compiled: OnceLock<Box<Compiled>>,
}

/// A namespace's annotations, compiled.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// Patterns of the allowed roles, where the annotation is there.
    pub allowed: Option<Result<Vec<Pattern>, String>>,
    /// Patterns of the permitted roles, any of which allows, where the annotation is there.
    pub permitted: Option<Result<Vec<Pattern>, String>>,
    /// The role of pods that name none.
    pub default_role: Option<Result<RoleArn, String>>,
}

impl NamespaceRules {
    /// The rules of `namespace`. `base` completes names of roles.
    pub fn new(namespace: &Namespace, base: Option<&BaseArn>, format: PatternFormat) -> Self {
        Self {
            labels: namespace.labels.clone(),
            namespace: namespace.clone(),
            base: base.cloned(),
            format,
            compiled: OnceLock::new(),
        }
    }

    /// Rules of a namespace without annotations.
    pub fn of_labels(labels: KeyValues) -> Self {
        let namespace = Namespace {
            labels,
            ..Namespace::default()
        };
        Self::new(&namespace, None, PatternFormat::default())
    }

    /// The namespace as it was reported.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The annotations, compiled.
    pub fn annotations(&self) -> &Compiled {
        self.compiled.get_or_init(|| {
            let base = self.base.as_ref();
            let namespace = &self.namespace;
            Box::new(Compiled {
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
                    .filter(|wish| !wish.is_empty())
                    .map(|wish| resolve(wish, base).map_err(|error| error.to_string())),
            })
        })
    }
}

/// The text of an annotation of rules, normalized and as much of it as sources keep. An empty one
/// stays, for it may mean "nothing".
pub fn rule_text(text: &str) -> Arc<str> {
    let text = normalized(text);
    // One character too many is refused when it is compiled, which a rule that was cut must be.
    let kept = text.get(..text.floor_char_boundary(MAX_RULES + 4));
    kept.unwrap_or(text).into()
}

/// The patterns of kube2iam's list of allowed roles, normalized.
///
/// # Errors
/// A sentence that says why it can't be read.
pub fn allowed_patterns(text: &str) -> Result<Vec<String>, String> {
    check_length(text)?;
    let mut list: Vec<String> = serde_json::from_str(text)
        .map_err(|_| "it is not a JSON list of strings, such as [\"team-*\"]".to_owned())?;
    if list.len() > MAX_PATTERNS {
        return Err(format!("it has more than {MAX_PATTERNS} patterns"));
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
        return Err(format!("it is longer than {MAX_RULES} characters"));
    }
    Ok(())
}

/// kiam matches the ARN from start to end (from v4 on), or the role as written, anywhere in it
/// (before). A bare name would never be a whole ARN, so it is also read as what follows the base.
fn permitted(text: &str, base: Option<&BaseArn>) -> Result<Vec<Pattern>, String> {
    check_length(text)?;
    let whole = Pattern::whole(text).map_err(|error| error.to_string())?;
    let named = Pattern::for_roles(text, PatternFormat::Regexp, base, MAX_COMPILED)
        .map_err(|e| e.to_string())?;
    Ok(vec![whole, named])
}
