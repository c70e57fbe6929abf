//! Layer `grants`: central grants, default deny.
//!
//! Any grant that covers a request allows it. The session comes from the one that names the role
//! most closely; pod labels, which tenants choose, make none closer. Where equally close ones
//! would make different sessions the answer is a denial that names them, since STS cannot
//! intersect them and either choice could shed the other's limits. External IDs, which tenants
//! choose too, choose no grant: the one that counts without an ID counts with it.

mod index;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::arn::BaseArn;
use crate::attribution::WorkloadTags;
use crate::grant::{Closeness, CompiledGrant, Grant, GrantError};
use crate::layer::{Ask, Layer, Reads, Verdict};
use crate::needs::Needs;
use index::Index;

/// How many role patterns a denial lists as allowed.
const HINTS: usize = 5;

/// All grants, compiled and indexed. Immutable.
#[derive(Debug, Default)]
pub struct GrantsLayer {
    /// Sorted by name.
    grants: Vec<CompiledGrant>,
    invalid: Vec<(Arc<str>, GrantError)>,
    /// Of all grants, the invalid ones too.
    namespace_label_keys: BTreeSet<Arc<str>>,
    index: Index,
    reads: Reads,
    needs: Needs,
}

impl GrantsLayer {
    /// Compiles `grants`. Those that are not valid grant nothing, see [`Self::invalid`].
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

    /// The grants that are valid, by name.
    pub fn grants(&self) -> &[CompiledGrant] {
        &self.grants
    }

    /// The grants that are not, with the first fault of each.
    pub fn invalid(&self) -> &[(Arc<str>, GrantError)] {
        &self.invalid
    }

    /// The keys of namespace labels that grants look at, sorted: whoever sets them grants. Those of
    /// invalid grants too, or a label could be set while a grant is broken and count once it is
    /// mended.
    pub fn namespace_label_keys(&self) -> impl Iterator<Item = &str> {
        self.namespace_label_keys.iter().map(|key| &**key)
    }

    /// The grants that cover `ask`, closest first, external IDs aside.
    pub fn covering(&self, ask: &Ask<'_>) -> Vec<(Closeness, &CompiledGrant)> {
        let mut covering = Vec::new();
        for place in self.index.candidates(&ask.workload.namespace, ask.role) {
            let Some(grant) = self.grants.get(place) else {
                continue;
            };
            if let Some(closeness) = grant.closeness(ask.role)
                && grant.covers(ask.workload, &ask.namespace.labels)
            {
                covering.push((closeness, grant));
            }
        }
        covering.sort_by(|(a, _), (b, _)| b.cmp(a));
        covering
    }

    /// Role patterns that this workload may have by some grant: a hint about its own rights only.
    fn hints(&self, ask: &Ask<'_>) -> Vec<&str> {
        let grants = self.grants.iter();
        let covering = grants.filter(|grant| grant.covers(ask.workload, &ask.namespace.labels));
        let mut hints: Vec<_> = covering
            .flat_map(|grant| grant.roles.iter().map(|role| &*role.text))
            .take(HINTS)
            .collect();
        hints.dedup();
        hints
    }

    fn uncovered(&self, ask: &Ask<'_>) -> Verdict {
        let workload = ask.workload;
        let hints = match self.hints(ask).as_slice() {
            [] => "it has a grant for no role".to_owned(),
            some => format!("it may have {}", some.join(", ")),
        };
        Verdict::deny(
            "default deny",
            format!(
                "no RoleGrant covers it for service account {} of namespace {}; {hints}; ask your \
                 cluster's administrator for a grant",
                workload.service_account, workload.namespace
            ),
        )
    }
}

impl Layer for GrantsLayer {
    fn name(&self) -> &'static str {
        "grants"
    }

    fn reads(&self) -> Reads {
        self.reads
    }

    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn lacks(&self, ask: &Ask<'_>) -> bool {
        let labels = (&ask.workload.labels, &ask.namespace.labels);
        if labels.0.know(&self.needs.pod_labels) && labels.1.know(&self.needs.namespace_labels) {
            return false;
        }
        let places = self.index.candidates(&ask.workload.namespace, ask.role);
        let mut candidates = places
            .into_iter()
            .filter_map(|place| self.grants.get(place));
        candidates.any(|grant| {
            grant.closeness(ask.role).is_some() && grant.lacks(ask.workload, &ask.namespace.labels)
        })
    }

    fn judge(&self, ask: &Ask<'_>) -> Verdict {
        let covering = self.covering(ask);
        let Some(((closest, first), others)) = covering.split_first() else {
            // What the administrator gives to every pod needs no grant beside it.
            return match (ask.is_default, &ask.workload.wish.external_id) {
                (true, None) => Verdict::allow("default role"),
                (true, Some(_)) => Verdict::deny(
                    "default role",
                    "no RoleGrant covers the default role, and without one it takes no external ID",
                ),
                (false, _) => self.uncovered(ask),
            };
        };
        let mut equals = others
            .iter()
            .take_while(|(closeness, _)| closeness == closest);
        if let Some((_, other)) = equals.find(|(_, other)| other.session != first.session) {
            return Verdict::deny(
                format!("{}, {}", first.name, other.name),
                format!(
                    "grants {} and {} name the role equally closely and make different sessions, so \
                     which one counts is ambiguous",
                    first.name, other.name
                ),
            );
        }
        // Another grant may list the ID, if the session it makes is the same.
        let id = ask.workload.wish.external_id.as_deref();
        let mut same = covering
            .iter()
            .filter(|(_, grant)| grant.session == first.session);
        let Some((_, grant)) = same.find(|(_, grant)| grant.takes_external_id(id)) else {
            let name = &first.name;
            return Verdict::deny(
                &**name,
                format!("grant {name} covers the role, but lists no such external ID"),
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
