//! Grants and configurations that cannot be used: they are refused where they are written, with what is
//! wrong, instead of being stored and granting nothing.

use rolegate_api::{RoleGrant, RolegateConfig};
use rolegate_core::arn::BaseArn;
use rolegate_core::config::RuleConfig;
use rolegate_core::grant::{CompiledGrant, Grant};
use serde_json::value::RawValue;

use super::{Change, Judge};
use crate::json::Node;
use crate::outcome::Fault;

/// The layer of rules that cannot be used, in faults.
const RULES: &str = "rules";

impl Judge<'_> {
    /// Refuses a grant or a configuration that cannot be used. One that is there already may be changed
    /// otherwise, so that its finalizers and labels can be.
    pub(super) fn validity(&mut self, change: &Change<'_>) {
        let unchanged = change
            .old
            .as_ref()
            .is_some_and(|old| spec(old) == spec(&change.new));
        let Some(object) = self.review.object().filter(|_| !unchanged) else {
            return;
        };
        let (rule, fault) = match &*self.review.kind().kind {
            "RoleGrant" => (
                "invalid grant",
                grant_fault(object, self.rules.rules.base.as_ref()),
            ),
            "RolegateConfig" => ("invalid configuration", config_fault(object)),
            _ => return,
        };
        if let Some(reason) = fault {
            self.outcome.fault(Fault::new("", RULES, rule, &reason));
        }
    }
}

fn spec<'n, 'a>(object: &'n Node<'a>) -> Option<&'n Node<'a>> {
    match object {
        Node::Map(fields) => fields.get("spec"),
        _ => None,
    }
}

/// What is wrong with a grant. A base ARN that is not known here may be known to agents, so names are
/// completed by any.
fn grant_fault(object: &RawValue, base: Option<&BaseArn>) -> Option<String> {
    let grant = match serde_json::from_str::<RoleGrant>(object.get()) {
        Ok(grant) => Grant::from(&grant),
        Err(error) => return Some(format!("the RoleGrant cannot be read: {error}")),
    };
    let any = BaseArn::of_account("aws", "000000000000").ok();
    let error = CompiledGrant::compile(&grant, base.or(any.as_ref())).err()?;
    Some(format!("the RoleGrant would grant nothing: {error}"))
}

fn config_fault(object: &RawValue) -> Option<String> {
    match serde_json::from_str::<RolegateConfig>(object.get()) {
        Ok(config) => {
            let error = RuleConfig::try_from(&config).err()?;
            Some(format!("the RolegateConfig cannot be used: {error}"))
        }
        Err(error) => Some(format!("the RolegateConfig cannot be read: {error}")),
    }
}
