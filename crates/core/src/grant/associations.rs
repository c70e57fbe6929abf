//! The index of the associations of all grants.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{AssociationName, CompiledAssociation, CompiledGrant};

/// Two associations that name a service account equally precisely, and differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ambiguous {
    /// The first association.
    pub first: AssociationName,
    /// An association that differs.
    pub second: AssociationName,
}

/// The associations of all valid grants, indexed by namespace. Immutable.
#[derive(Debug, Default)]
pub struct Associations {
    all: Vec<CompiledAssociation>,
    by_namespace: HashMap<Box<str>, Vec<usize>>,
    anywhere: Vec<usize>,
    audiences: BTreeSet<Arc<str>>,
}

impl Associations {
    /// Creates the index of the associations of `grants`.
    pub fn new<'a>(grants: impl IntoIterator<Item = &'a CompiledGrant>) -> Self {
        let mut index = Self::default();
        let grants = grants.into_iter();
        for association in grants.flat_map(|grant| &grant.associations) {
            let place = index.all.len();
            match association.exact_namespace() {
                Some(namespace) => {
                    let places = index.by_namespace.entry(namespace.into()).or_default();
                    places.push(place);
                }
                None => index.anywhere.push(place),
            }
            index.audiences.extend(association.audience.clone());
            index.all.push(association.clone());
        }
        index
    }

    /// Returns the audiences that associations name, of all service accounts. An endpoint accepts
    /// tokens for these in addition to its default audience.
    pub fn audiences(&self) -> &BTreeSet<Arc<str>> {
        &self.audiences
    }

    /// Returns true if there is no association.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns the associations of a service account, for any audience.
    pub(crate) fn of(&self, namespace: &str, service_account: &str) -> Vec<&CompiledAssociation> {
        let exact = self.by_namespace.get(namespace).into_iter().flatten();
        exact
            .chain(&self.anywhere)
            .filter_map(|place| self.all.get(*place))
            .filter(|association| association.matches(namespace, service_account))
            .collect()
    }

    /// Returns the most precise association of a service account for an audience.
    ///
    /// # Errors
    /// [`Ambiguous`] if two are equally precise and differ.
    pub fn find(
        &self,
        namespace: &str,
        service_account: &str,
        audience: Option<&str>,
    ) -> Result<Option<&CompiledAssociation>, Ambiguous> {
        let mut best: Option<&CompiledAssociation> = None;
        let mut rival = None;
        let all = self.of(namespace, service_account);
        let all = all.into_iter();
        for association in all.filter(|it| it.audience.as_deref() == audience) {
            match best {
                Some(known) if association.precision < known.precision => {}
                Some(known) if association.precision == known.precision => {
                    if !association.is_equivalent(known) {
                        rival = Some(association);
                    }
                }
                _ => {
                    best = Some(association);
                    rival = None;
                }
            }
        }
        match (best, rival) {
            (Some(best), Some(rival)) => Err(Ambiguous {
                first: best.name.clone(),
                second: rival.name.clone(),
            }),
            (best, _) => Ok(best),
        }
    }
}
