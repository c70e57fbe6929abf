//! Layer `grants`: RoleGrants, with denial by default.
//!
//! Any grant that covers a request allows it. The session settings come from the grant with the
//! highest specificity for the role; pod labels, which tenants choose, do not raise it. If equally
//! specific grants differ in their session settings, the request is denied and both are named: STS
//! cannot intersect them, and choosing one would drop the other's restrictions. External IDs, which
//! tenants also choose, do not select a grant either: the grant that applies without an ID applies
//! with it.

mod index;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::arn::BaseArn;
use crate::attribution::WorkloadTags;
use crate::grant::{Associations, CompiledGrant, Grant, GrantError, Specificity};
use crate::layer::{AccessRequest, Layer, LayerId, Verdict, WorkloadFields};
use crate::needs::Needs;
use index::Index;

/// Maximum number of allowed role patterns that a denial lists.
const HINTS: usize = 5;

/// All grants, compiled and indexed. Immutable.
#[derive(Debug, Default)]
pub struct GrantsLayer {
    /// Sorted by name.
    grants: Vec<CompiledGrant>,
    invalid: Vec<(Arc<str>, GrantError)>,
    /// Keys read by any grant, including invalid ones.
    namespace_label_keys: BTreeSet<Arc<str>>,
    index: Index,
    reads: WorkloadFields,
    needs: Needs,
    associations: Arc<Associations>,
}

impl GrantsLayer {
    /// Compiles `grants`. Invalid ones grant nothing, see [`Self::invalid`].
    pub fn new<'a>(grants: impl IntoIterator<Item = &'a Grant>, base: Option<&BaseArn>) -> Self {
        let mut layer = Self::default();
        for grant in grants {
            let subjects = grant.subjects.iter();
            let selectors = subjects.filter_map(|subject| subject.namespace_selector.as_ref());
            let keys = selectors.flat_map(|selector| selector.keys());
            layer.namespace_label_keys.extend(keys.map(Into::into));
            match CompiledGrant::compile(grant, base) {
                Ok(compiled) => layer.grants.push(compiled),
                Err(error) => layer.invalid.push((grant.name.clone(), error)),
            }
        }
        layer.grants.sort_by(|a, b| a.name.cmp(&b.name));
        layer.index = Index::new(&layer.grants);
        layer.associations = Arc::new(Associations::new(&layer.grants));
        let mut grants = layer.grants.iter();
        layer.reads.labels = grants.any(|grant| grant.pod_label_keys().next().is_some());
        let grants = layer.grants.iter();
        layer.needs.pod_labels = grants.flat_map(CompiledGrant::pod_label_keys).collect();
        layer.needs.namespace_labels = layer.namespace_label_keys().collect();
        let mut grants = layer.grants.iter();
        layer.reads.pod =
            grants.any(|grant| grant.session.attribution.tags == Some(WorkloadTags::Pod));
        layer
    }

    /// Returns the valid grants, sorted by name.
    pub fn grants(&self) -> &[CompiledGrant] {
        &self.grants
    }

    /// Returns the associations of the valid grants.
    pub fn associations(&self) -> &Arc<Associations> {
        &self.associations
    }

    /// Returns the invalid grants, each with its first error.
    pub fn invalid(&self) -> &[(Arc<str>, GrantError)] {
        &self.invalid
    }

    /// Returns the sorted keys of the namespace labels that grants read. Users who may set them can
    /// grant roles. Invalid grants are included, since a label that was set while a grant is broken
    /// would take effect once the grant is corrected.
    pub fn namespace_label_keys(&self) -> impl Iterator<Item = &str> {
        self.namespace_label_keys.iter().map(|key| &**key)
    }

    /// Returns the grants that cover the request, most specific first, regardless of external IDs.
    pub fn covering(&self, request: &AccessRequest<'_>) -> Vec<(Specificity, &CompiledGrant)> {
        let mut covering = Vec::new();
        for place in self
            .index
            .candidates(&request.workload.namespace, request.role)
        {
            let Some(grant) = self.grants.get(place) else {
                continue;
            };
            let labels = &request.namespace.labels;
            if let Some(specificity) = grant.covers_role(request.workload, labels, request.role) {
                covering.push((specificity, grant));
            }
        }
        covering.sort_by(|(a, _), (b, _)| b.cmp(a));
        covering
    }

    /// Returns role patterns that other grants allow the workload to assume, as a hint. It reveals
    /// only the workload's own rights.
    fn hints(&self, request: &AccessRequest<'_>) -> Vec<&str> {
        let grants = self.grants.iter();
        let mut hints: Vec<_> = grants
            .flat_map(|grant| grant.roles_of(request.workload, &request.namespace.labels))
            .take(HINTS)
            .collect();
        hints.dedup();
        hints
    }

    fn uncovered(&self, request: &AccessRequest<'_>) -> Verdict {
        let workload = request.workload;
        let hints = match self.hints(request).as_slice() {
            [] => "no RoleGrant allows it any role".to_owned(),
            some => format!("allowed roles: {}", some.join(", ")),
        };
        Verdict::deny(
            "default deny",
            format!(
                "no RoleGrant covers the role for service account {} in namespace {}; {hints}; \
                 ask your cluster's administrator for a grant",
                workload.service_account, workload.namespace
            ),
        )
    }
}

impl Layer for GrantsLayer {
    fn id(&self) -> LayerId {
        LayerId::Grants
    }

    fn reads(&self) -> WorkloadFields {
        self.reads
    }

    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn lacks(&self, request: &AccessRequest<'_>) -> bool {
        let labels = (&request.workload.labels, &request.namespace.labels);
        if labels.0.cover(&self.needs.pod_labels) && labels.1.cover(&self.needs.namespace_labels) {
            return false;
        }
        let places = self
            .index
            .candidates(&request.workload.namespace, request.role);
        let mut candidates = places
            .into_iter()
            .filter_map(|place| self.grants.get(place));
        candidates.any(|grant| {
            grant.specificity(request.role).is_some()
                && grant.lacks(request.workload, &request.namespace.labels)
        })
    }

    fn evaluate(&self, request: &AccessRequest<'_>) -> Verdict {
        let covering = self.covering(request);
        let Some(((closest, first), others)) = covering.split_first() else {
            // The administrator's default role needs no grant.
            return match (
                request.is_default,
                &request.workload.role_request.external_id,
            ) {
                (true, None) => Verdict::allow("default role"),
                (true, Some(_)) => Verdict::deny(
                    "default role",
                    "no RoleGrant covers the default role, so it cannot be used with an external \
                     ID",
                ),
                (false, _) => self.uncovered(request),
            };
        };
        let mut equals = others
            .iter()
            .take_while(|(specificity, _)| specificity == closest);
        if let Some((_, other)) = equals.find(|(_, other)| other.session != first.session) {
            return Verdict::deny(
                format!("{}, {}", first.name, other.name),
                format!(
                    "grants {} and {} match the role with equal specificity but differ in \
                     session settings, so the session is ambiguous; ask your cluster's \
                     administrator to align them",
                    first.name, other.name
                ),
            );
        }
        // Another grant may list the ID if its session settings are the same.
        let id = request.workload.role_request.external_id.as_deref();
        let mut same = covering
            .iter()
            .filter(|(_, grant)| grant.session == first.session);
        let (workload, role) = (request.workload, request.role);
        let Some((_, grant)) = same.find(|(_, grant)| grant.allows_external_id(workload, role, id))
        else {
            let name = &first.name;
            return Verdict::deny(
                &**name,
                format!("grant {name} covers the role but does not allow this external ID"),
            );
        };
        Verdict::Allow {
            rule: grant.name.to_string(),
            session: Some(grant.session.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
