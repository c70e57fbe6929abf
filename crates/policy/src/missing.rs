//! Computes the minimal grant that allows a role that layer `grants` denies.

use jiff::Timestamp;
use rolegate_core::decision::{Decision, Denial, RuleSet};
use rolegate_core::grant::{Grant, SessionRules, Subject};
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_core::layer::{AccessRequest, ActiveLayer, Layer, LayerId, Mode, Verdict};
use rolegate_core::workload::Workload;
use std::sync::Arc;

use crate::document::{Names, is_plain_name, role_text, session_rules};

/// A missing grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingGrant {
    /// The grant of this role and external ID for this namespace and service account.
    pub grant: Grant,
    /// The denial that remains with the grant.
    pub then: Option<Denial>,
}

/// Returns the minimal grant with which layer `grants` allows what it denies `workload`, in enforce
/// or audit mode. Returns `None` if it denies nothing, or if no additional grant helps, such as
/// between two grants that make different sessions, or for a reserved role.
pub fn missing_grant(
    rules: &RuleSet,
    grants: &GrantsLayer,
    workload: &Workload,
    now: Timestamp,
) -> Option<MissingGrant> {
    let explanation = rules.explain(workload, now);
    let role = explanation.role?;
    // No grant can allow a reserved role.
    if rules.reserved_roles.iter().any(|own| own.is(&role)) {
        return None;
    }
    let judged = explanation.layer_results.iter();
    judged
        .filter(|result| result.layer == LayerId::Grants && result.mode != Mode::Off)
        .find(|result| matches!(result.verdict, Verdict::Deny { .. }))?;
    let namespace = rules.namespaces.get(&workload.namespace)?;
    let ask = AccessRequest {
        workload,
        role: &role,
        is_default: false,
        namespace,
        now,
    };
    if !is_plain_name(&workload.namespace) || !is_plain_name(&workload.service_account) {
        return None;
    }
    let names = grants
        .grants()
        .iter()
        .map(|grant| &*grant.name)
        .chain(grants.invalid().iter().map(|(name, _)| &**name));
    let role_request = format!("{}.{}", workload.namespace, workload.service_account);
    let grant = Grant {
        name: Names::taken(names).next(&role_request).into(),
        roles: vec![role_text(&role, rules.base.as_ref())],
        subjects: vec![Subject {
            namespaces: vec![workload.namespace.to_string()],
            service_accounts: vec![workload.service_account.to_string()],
            ..Subject::default()
        }],
        external_ids: workload
            .role_request
            .external_id
            .iter()
            .map(ToString::to_string)
            .collect(),
        session: session_beside(grants, &ask)?,
        ..Grant::default()
    };
    // The existing grants do not cover this request, so the new grant alone decides in the layer.
    let alone = Arc::new(GrantsLayer::new([&grant], rules.base.as_ref()));
    if !matches!(alone.evaluate(&ask), Verdict::Allow { .. }) {
        return None;
    }
    let with = RuleSet {
        layers: rules
            .layers
            .iter()
            .map(|active| ActiveLayer {
                layer: if active.layer.id() == LayerId::Grants {
                    alone.clone()
                } else {
                    active.layer.clone()
                },
                mode: active.mode,
            })
            .collect(),
        ..rules.clone()
    };
    let then = match with.decide(workload, now) {
        Decision::Deny(denial) => Some(denial),
        Decision::Allow { .. } | Decision::NoRole | Decision::Pending => None,
    };
    Some(MissingGrant { grant, then })
}

/// Returns the session rules of the new grant: those of the most specific grants that cover the
/// role but do not list the external ID, so that their limits remain. Returns `None` if these
/// grants differ.
fn session_beside(grants: &GrantsLayer, ask: &AccessRequest<'_>) -> Option<SessionRules> {
    let covering = grants.covering(ask);
    let Some(((closest, first), others)) = covering.split_first() else {
        return Some(SessionRules::default());
    };
    let mut equals = others.iter().take_while(|(other, _)| other == closest);
    let disagree = equals.any(|(_, other)| other.session != first.session);
    (!disagree).then(|| session_rules(&first.session))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{NOW, grant, pod, rules};

    #[test]
    fn the_grant_names_this_role_and_service_account_only() {
        let fixture = rules(&[], Mode::Enforce);
        let pod = pod("shop", "api", "reader");
        let missing = missing_grant(&fixture.rules, &fixture.grants, &pod, NOW).unwrap();
        assert_eq!(missing.then, None);
        assert_eq!(&*missing.grant.name, "shop.api");
        assert_eq!(missing.grant.roles, ["reader"]);
        assert_eq!(missing.grant.subjects.len(), 1);
        assert_eq!(missing.grant.subjects[0].namespaces, ["shop"]);
        assert_eq!(missing.grant.subjects[0].service_accounts, ["api"]);
        assert!(missing.grant.external_ids.is_empty());
    }

    #[test]
    fn what_is_outside_the_base_is_named_by_its_arn() {
        let fixture = rules(&[], Mode::Audit);
        let arn = "arn:aws:iam::210987654321:role/x";
        let pod = pod("shop", "api", arn);
        let missing = missing_grant(&fixture.rules, &fixture.grants, &pod, NOW).unwrap();
        assert_eq!(missing.grant.roles, [arn]);
    }

    #[test]
    fn an_external_id_keeps_the_limits_of_the_grant_that_lacks_it() {
        let mut narrow = grant("shop.api", &["reader"], "shop", "api");
        narrow.session.duration_seconds = Some(900);
        narrow.session.policy = "{}".into();
        narrow.session.attribution.transitive = Some(false);
        let fixture = rules(&[narrow.clone()], Mode::Enforce);
        let mut pod = pod("shop", "api", "reader");
        pod.role_request.external_id = Some("customer".into());
        let missing = missing_grant(&fixture.rules, &fixture.grants, &pod, NOW).unwrap();
        assert_eq!(missing.grant.session, narrow.session);
        assert_eq!(missing.grant.external_ids, ["customer"]);
        assert_eq!(&*missing.grant.name, "shop.api-2");
    }

    #[test]
    fn ambiguity_and_names_with_stars_get_no_grant() {
        let mut one = grant("one", &["reader"], "shop", "api");
        one.session.duration_seconds = Some(900);
        let two = grant("two", &["reader"], "shop", "api");
        let fixture = rules(&[one, two], Mode::Enforce);
        let ambiguous = pod("shop", "api", "reader");
        assert_eq!(
            missing_grant(&fixture.rules, &fixture.grants, &ambiguous, NOW),
            None
        );
        let star = pod("shop", "*", "reader");
        assert_eq!(
            missing_grant(&fixture.rules, &fixture.grants, &star, NOW),
            None
        );
    }

    #[test]
    fn a_role_of_our_own_gets_no_grant() {
        let mut fixture = rules(&[], Mode::Enforce);
        let own = pod("shop", "api", "path/NODE");
        assert!(missing_grant(&fixture.rules, &fixture.grants, &own, NOW).is_some());
        fixture.rules.reserved_roles =
            vec![rolegate_core::decision::ReservedRole::parse("node").unwrap()];
        assert_eq!(
            missing_grant(&fixture.rules, &fixture.grants, &own, NOW),
            None
        );
    }

    #[test]
    fn what_refuses_all_the_same_is_told() {
        let fixture = rules(&[], Mode::Enforce);
        let pod = pod("closed", "api", "reader");
        let missing = missing_grant(&fixture.rules, &fixture.grants, &pod, NOW).unwrap();
        assert_eq!(missing.then.unwrap().denied_by, LayerId::Namespace.into());
    }
}
