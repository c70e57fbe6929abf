//! Validates grants and configurations: invalid ones are denied with the error, instead of being
//! stored without effect.

use rolegate_api::{RoleGrant, RolegateConfig};
use rolegate_core::arn::BaseArn;
use rolegate_core::config::RuleConfig;
use rolegate_core::grant::{CompiledGrant, Grant};
use serde_json::value::RawValue;

use super::{Change, Validator};
use crate::json::Node;
use crate::outcome::{Violation, ViolationSource};

impl Validator<'_> {
    /// Denies an invalid grant or configuration. An existing one may be changed elsewhere, such as
    /// in its finalizers and labels.
    pub(super) fn validity(&mut self, change: &Change<'_>) {
        let unchanged = change
            .old
            .as_ref()
            .is_some_and(|old| spec(old) == spec(&change.new));
        let Some(object) = self.review.object().filter(|_| !unchanged) else {
            return;
        };
        let (rule, violation) = match &*self.review.kind().kind {
            "RoleGrant" => (
                "invalid grant",
                grant_fault(object, self.rules.rules.base.as_ref()),
            ),
            "RolegateConfig" => ("invalid configuration", config_fault(object)),
            _ => return,
        };
        if let Some(reason) = violation {
            self.outcome
                .violation(Violation::new("", ViolationSource::RULES, rule, &reason));
        }
    }
}

fn spec<'n, 'a>(object: &'n Node<'a>) -> Option<&'n Node<'a>> {
    match object {
        Node::Map(fields) => fields.get("spec"),
        _ => None,
    }
}

/// Returns the error in a grant. Agents may know a base ARN that is unknown here, so names are
/// completed with any.
fn grant_fault(object: &RawValue, base: Option<&BaseArn>) -> Option<String> {
    let grant = match serde_json::from_str::<RoleGrant>(object.get()) {
        Ok(grant) => Grant::from(&grant),
        Err(error) => return Some(format!("cannot parse the RoleGrant: {error}")),
    };
    let any = BaseArn::from_account("aws", "000000000000").ok();
    let error = CompiledGrant::compile(&grant, base.or(any.as_ref())).err()?;
    Some(format!("the RoleGrant would grant nothing: {error}"))
}

fn config_fault(object: &RawValue) -> Option<String> {
    match serde_json::from_str::<RolegateConfig>(object.get()) {
        Ok(config) => {
            let error = RuleConfig::try_from(&config).err()?;
            Some(format!("the RolegateConfig is invalid: {error}"))
        }
        Err(error) => Some(format!("cannot parse the RolegateConfig: {error}")),
    }
}
