//! The second line behind the redirect: routing rules that refuse what is forwarded to a metadata
//! address. A redirected packet has another destination by the time that it is routed, so these
//! rules see only what the redirect missed: all of it, while something else has flushed the
//! filter's rules.
//!
//! A rule can only match an interface by its exact name, and pods' interfaces are known by
//! patterns. So the rules are inverted: packets that this host itself sends come from `lo` and
//! continue as if there were no rules; those arriving on any other interface are refused, as by the
//! filter's rules.

use std::fmt;
use std::net::IpAddr;

use super::Family;

/// The rule that lets this host's own packets pass; only the table `local` is asked earlier, and
/// network plug-ins begin at 9.
const PASS: u32 = 1;
/// The rule that refuses all others.
const REFUSE: u32 = 2;
/// The place where the host's own packets go on. A rule that does nothing, so that they meet the
/// host's other rules in their order.
const GO_ON: u32 = 3;

/// The kernel's action for a packet that matches a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutingAction {
    /// Goes on with the rule of this priority.
    GoTo(u32),
    /// Refuses the packet, and says so to its sender.
    Prohibit,
    /// Goes on with the next rule.
    Nothing,
}

/// A rule of the kernel's routing policy, as `ip rule` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutingRule {
    /// The list of rules that it is in.
    pub family: Family,
    /// Its place in the list; lower ones come first.
    pub priority: u32,
    /// The destination that it matches; all without one.
    pub destination: Option<IpAddr>,
    /// True if it matches only packets that this host itself sends.
    pub local: bool,
    /// The action on a match.
    pub action: RoutingAction,
}

/// The rules of one family in the order to add them: the host's own packets are let pass before
/// anything is refused. To remove them, take them from the end.
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
