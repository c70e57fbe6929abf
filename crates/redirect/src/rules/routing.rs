//! Routing rules that reject traffic forwarded to a metadata address, as a second line of defense.
//! A redirected packet has another destination by the time it is routed, so these rules match only
//! packets that the redirect missed, which is all of them while another program has flushed the
//! filter's rules.
//!
//! A routing rule matches an interface only by its exact name, but pods' interfaces are known by
//! patterns. The rules are therefore inverted: packets that this host sends come from `lo` and
//! continue as if there were no rules, and those arriving on any other interface are rejected, as
//! by the filter's rules.

use std::fmt;
use std::net::IpAddr;

use super::Family;

/// Priority of the rule that passes this host's own packets. Only the table `local` precedes it;
/// network plugins begin at 9.
const PASS: u32 = 1;
/// Priority of the rule that rejects all other packets.
const REFUSE: u32 = 2;
/// Priority at which the host's own packets continue. The rule does nothing, so that they go
/// through the host's other rules in order.
const GO_ON: u32 = 3;

/// The kernel's action for a matching packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutingAction {
    /// Continue with the rule of this priority.
    GoTo(u32),
    /// Reject the packet with an ICMP error.
    Prohibit,
    /// Continue with the next rule.
    Nothing,
}

/// A rule of the kernel's routing policy, as `ip rule` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutingRule {
    /// The address family of the rule.
    pub family: Family,
    /// The priority of the rule. Lower ones are evaluated first.
    pub priority: u32,
    /// The destination that the rule matches; `None` for all.
    pub destination: Option<IpAddr>,
    /// True if the rule matches only packets that this host sends.
    pub local: bool,
    /// The action on a match.
    pub action: RoutingAction,
}

/// Returns the rules of one family in the order in which to add them: the host's own packets pass
/// before anything is rejected. Remove them in reverse order.
pub fn routing_rules(family: Family) -> [RoutingRule; 3] {
    let rule = |priority, action| RoutingRule {
        family,
        priority,
        destination: Some(family.metadata()),
        local: false,
        action,
    };
    [
        RoutingRule {
            destination: None,
            ..rule(GO_ON, RoutingAction::Nothing)
        },
        RoutingRule {
            local: true,
            ..rule(PASS, RoutingAction::GoTo(GO_ON))
        },
        rule(REFUSE, RoutingAction::Prohibit),
    ]
}

impl fmt::Display for RoutingRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: from all", self.priority)?;
        if let Some(destination) = self.destination {
            write!(f, " to {destination}")?;
        }
        if self.local {
            f.write_str(" iif lo")?;
        }
        match self.action {
            RoutingAction::GoTo(priority) => write!(f, " goto {priority}"),
            RoutingAction::Prohibit => f.write_str(" prohibit"),
            RoutingAction::Nothing => f.write_str(" nop"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_read_as_the_kernel_lists_them() {
        let text = |family| routing_rules(family).map(|rule| rule.to_string());
        assert_eq!(
            text(Family::V4),
            [
                "3: from all nop",
                "1: from all to 169.254.169.254 iif lo goto 3",
                "2: from all to 169.254.169.254 prohibit",
            ]
        );
        assert_eq!(
            text(Family::V6),
            [
                "3: from all nop",
                "1: from all to fd00:ec2::254 iif lo goto 3",
                "2: from all to fd00:ec2::254 prohibit",
            ]
        );
    }

    #[test]
    fn the_host_s_own_packets_pass_before_anything_is_refused() {
        for family in Family::ALL {
            let rules = routing_rules(family);
            let refusing = rules
                .iter()
                .position(|rule| rule.action == RoutingAction::Prohibit);
            assert_eq!(refusing, Some(rules.len() - 1), "added last, removed first");
            let [go_on, pass, refuse] = rules;
            assert_eq!(pass.action, RoutingAction::GoTo(go_on.priority));
            assert!(pass.priority < refuse.priority && refuse.priority < go_on.priority);
        }
    }
}
