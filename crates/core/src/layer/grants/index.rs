//! An index of grants by namespace name and by the literal prefix of role ARNs, to find the few
//! candidates for a request among thousands.

use std::collections::HashMap;
use std::sync::Arc;

use crate::arn::RoleArn;
use crate::grant::{CompiledGrant, RolePattern};

/// Indexes of grants by namespace and role.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_namespace: HashMap<Arc<str>, Roles>,
    anywhere: Roles,
}

/// Indexes of grants by role pattern.
#[derive(Debug, Default)]
struct Roles {
    exact: HashMap<Box<str>, Vec<usize>>,
    by_start: HashMap<Box<str>, Vec<usize>>,
    /// The distinct lengths of the prefixes.
    lengths: Vec<usize>,
}

impl Index {
    pub(super) fn new(grants: &[CompiledGrant]) -> Self {
        let mut index = Self::default();
        for (place, grant) in grants.iter().enumerate() {
            for subject in &grant.subjects {
                if subject.exact_namespaces.is_empty() {
                    index.anywhere.insert(place, &grant.roles);
                }
                for namespace in &subject.exact_namespaces {
                    let roles = index.by_namespace.entry(namespace.clone()).or_default();
                    roles.insert(place, &grant.roles);
                }
            }
            for association in &grant.associations {
                let roles = match association.exact_namespace() {
                    Some(namespace) => index.by_namespace.entry(namespace.into()).or_default(),
                    None => &mut index.anywhere,
                };
                roles.insert(place, &association.grants);
            }
        }
        index
    }

    /// Returns the sorted, distinct indexes of all grants that may cover `role` in `namespace`.
    pub(super) fn candidates(&self, namespace: &str, role: &RoleArn) -> Vec<usize> {
        let mut places = Vec::new();
        if let Some(roles) = self.by_namespace.get(namespace) {
            roles.find(role.as_str(), &mut places);
        }
        self.anywhere.find(role.as_str(), &mut places);
        places.sort_unstable();
        places.dedup();
        places
    }
}

impl Roles {
    fn insert(&mut self, place: usize, patterns: &[RolePattern]) {
        for role in patterns {
            let (start, is_all) = role.pattern.literal_start();
            let map = if is_all {
                &mut self.exact
            } else {
                if let Err(at) = self.lengths.binary_search(&start.len()) {
                    self.lengths.insert(at, start.len());
                }
                &mut self.by_start
            };
            map.entry(start.into()).or_default().push(place);
        }
    }

    fn find(&self, arn: &str, places: &mut Vec<usize>) {
        if let Some(found) = self.exact.get(arn) {
            places.extend(found);
        }
        for length in &self.lengths {
            let Some(start) = arn.get(..*length) else {
                return;
            };
            if let Some(found) = self.by_start.get(start) {
                places.extend(found);
            }
        }
    }
}
