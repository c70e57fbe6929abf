//! The metadata options of the instance. The metadata service does not show them, and this program
//! does not call EC2.

use super::super::facts::NodeFacts;
use crate::check::Outcome;
use crate::reading::Unread;

pub(in crate::node) fn check(facts: &NodeFacts) -> Result<Outcome, Unread> {
    let id = facts
        .instance
        .as_ref()
        .map_or("INSTANCE", |instance| &*instance.id);
    Err(Unread::OutOfReach {
        why: "the metadata service does not show whether tokens are required and the hop limit"
            .into(),
        instead: format!(
            "HttpTokens should be required and HttpPutResponseHopLimit 1:\naws ec2 describe-instances --instance-ids {id} --query 'Reservations[].Instances[].MetadataOptions'"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::facts::tests::healthy;

    #[test]
    fn the_options_are_never_a_pass() {
        let unread = check(&healthy()).unwrap_err();
        assert!(unread.advice().unwrap().contains("--instance-ids i-1"));
    }
}
