//! The metadata address is not an address of this host.

use super::super::facts::NodeFacts;
use crate::check::{Finding, Outcome};
use crate::reading::Unread;

pub(in crate::node) fn check(facts: &NodeFacts) -> Result<Outcome, Unread> {
    if !facts.is_metadata_local {
        return Ok(Outcome::ok(
            "169.254.169.254 is not an address of this host",
        ));
    }
    let message = "169.254.169.254 is an address of this host: the agent and other programs of the node cannot reach the real metadata service";
    let advice = "find the interface with `ip -4 address show to 169.254.169.254` and remove the address, or unset the sysctl net.ipv4.ip_nonlocal_bind";
    Ok(Finding::warning(message).advice(advice).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;
    use crate::node::facts::tests::healthy;

    #[test]
    fn a_local_metadata_address_is_found() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        facts.is_metadata_local = true;
        assert_eq!(check(&facts).unwrap().status(), Status::Warning);
    }
}
