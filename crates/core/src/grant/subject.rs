//! Compiled subjects of grants.

use std::sync::Arc;

use super::{GrantError, Subject, check_count};
use crate::labels::Labels;
use crate::namespace::NAME_LABEL;
use crate::pattern::Pattern;
use crate::selector::Selector;
use crate::workload::Workload;

/// A compiled subject.
#[derive(Debug, Clone)]
pub struct CompiledSubject {
    /// Namespace names without `*`, for the index.
    pub exact_namespaces: Vec<Arc<str>>,
    namespaces: Vec<Pattern>,
    pub(super) namespace_selector: Option<Selector>,
    service_accounts: Vec<Pattern>,
    pub(super) pod_selector: Option<Selector>,
}

impl CompiledSubject {
    pub(super) fn compile(place: usize, subject: &Subject) -> Result<Self, GrantError> {
        let says_something = |selector: &Option<Selector>| {
            selector
                .as_ref()
                .is_some_and(|selector| !selector.is_empty())
        };
        for (name, selector) in [
            ("namespaceSelector", &subject.namespace_selector),
            ("podSelector", &subject.pod_selector),
        ] {
            if selector.is_some() && !says_something(selector) {
                return Err(GrantError::Empty(place, name));
            }
        }
        if subject.namespaces.is_empty() && subject.namespace_selector.is_none() {
            return Err(GrantError::NoNamespace(place));
        }
        check_count("spec.subjects[].namespaces", &subject.namespaces)?;
        check_count("spec.subjects[].serviceAccounts", &subject.service_accounts)?;
        let mut exact_namespaces = Vec::new();
        for name in &subject.namespaces {
            if name.is_empty() {
                return Err(GrantError::Empty(place, "namespaces[]"));
            }
            if !name.contains('*') {
                exact_namespaces.push(name.as_str().into());
            }
        }
        if subject.service_accounts.iter().any(String::is_empty) {
            return Err(GrantError::Empty(place, "serviceAccounts[]"));
        }
        let globs = |field, all: &[String]| {
            let all = all.iter().map(|text| Pattern::glob_of_names(text));
            all.collect::<Result<Vec<_>, _>>()
                .map_err(|error| GrantError::Pattern(field, error))
        };
        Ok(Self {
            // The index can find the subject by name only if every pattern is a plain name.
            exact_namespaces: if exact_namespaces.len() == subject.namespaces.len() {
                exact_namespaces
            } else {
                Vec::new()
            },
            namespaces: globs("spec.subjects[].namespaces", &subject.namespaces)?,
            namespace_selector: subject.namespace_selector.clone(),
            service_accounts: globs("spec.subjects[].serviceAccounts", &subject.service_accounts)?,
            pod_selector: subject.pod_selector.clone(),
        })
    }

    pub(super) fn covers(&self, workload: &Workload, namespace_labels: &Labels) -> bool {
        named(&self.namespaces, &workload.namespace)
            && named(&self.service_accounts, &workload.service_account)
            && selected(&self.namespace_selector, namespace_labels)
            && selected(&self.pod_selector, &workload.labels)
    }

    pub(super) fn lacks(&self, workload: &Workload, namespace_labels: &Labels) -> bool {
        named(&self.namespaces, &workload.namespace)
            && named(&self.service_accounts, &workload.service_account)
            && (lacks(&self.namespace_selector, namespace_labels)
                || lacks(&self.pod_selector, &workload.labels))
    }

    pub(super) fn matches_namespace(&self, namespace: &str, labels: &Labels) -> bool {
        let any_name = |glob: &Pattern| glob.as_str().bytes().all(|byte| byte == b'*');
        let selects_names = self.namespace_selector.as_ref();
        let looks = !self.namespaces.is_empty() && !self.namespaces.iter().any(any_name)
            || selects_names.is_some_and(|all| all.keys().any(|key| key == NAME_LABEL));
        looks && named(&self.namespaces, namespace) && selected(&self.namespace_selector, labels)
    }
}

fn named(patterns: &[Pattern], name: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name))
}

fn lacks(selector: &Option<Selector>, labels: &Labels) -> bool {
    let keys = selector.iter().flat_map(Selector::keys);
    keys.into_iter().any(|key| !labels.cover_key(key))
}

fn selected(selector: &Option<Selector>, labels: &Labels) -> bool {
    selector
        .as_ref()
        .is_none_or(|selector| selector.matches(labels))
}
