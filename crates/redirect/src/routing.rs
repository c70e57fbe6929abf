//! The redirect's routing rules in the kernel, set with netlink. [`crate::rules`]
//! defines them.
//!
//! A rule is identified by all of its fields. One with an additional condition is another rule,
//! which is neither counted nor removed.

use std::net::IpAddr;

use crate::rules::{Family, RoutingAction, RoutingRule, routing_rules};
use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use crate::{RedirectError, State, families};

/// The interface of this host's own packets.
const LOOPBACK: &str = "lo";

/// Returns rolegate's rules in the kernel, in the order in which they are added.
pub(crate) async fn present() -> Result<Vec<RoutingRule>, RedirectError> {
    connected(async |handle| {
        let mut present = Vec::new();
        for family in families() {
            present.extend(listed(&handle, family).await?);
        }
        Ok(present)
    })
    .await
}

/// Compares the kernel's rules with the expected ones.
pub(crate) async fn state() -> Result<State, RedirectError> {
    let wanted: Vec<_> = families().flat_map(routing_rules).collect();
    let present = present().await?;
    Ok(if present == wanted {
        State::InPlace
    } else if present.is_empty() {
        State::Missing
    } else {
        State::Altered
    })
}

/// Adds the missing rules.
pub(crate) async fn apply() -> Result<(), RedirectError> {
    connected(async |handle| {
        for family in families() {
            let present = listed(&handle, family).await?;
            let missing = routing_rules(family)
                .into_iter()
                .filter(|rule| !present.contains(rule));
            for rule in missing {
                let mut request = handle.rule().add();
                *request.message_mut() = message(&rule);
                // Another process may add them concurrently.
                unless(rustix::io::Errno::EXIST, request.execute().await)?;
            }
        }
        Ok(())
    })
    .await
}

/// Removes the existing rules, and returns whether there were any.
pub(crate) async fn remove() -> Result<bool, RedirectError> {
    connected(async |handle| {
        let mut some = false;
        for family in families() {
            for rule in listed(&handle, family).await?.iter().rev() {
                let done = handle.rule().del(message(rule)).execute().await;
                unless(rustix::io::Errno::NOENT, done)?;
                some = true;
            }
        }
        Ok(some)
    })
    .await
}

/// Runs `work` with a connection to the kernel, and closes it afterwards.
pub(crate) async fn connected<T>(
    work: impl AsyncFnOnce(Handle) -> Result<T, RedirectError>,
) -> Result<T, RedirectError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(RedirectError::Netlink)?;
    tokio::select! {
        done = work(handle) => done,
        () = connection => Err(RedirectError::Netlink(std::io::ErrorKind::BrokenPipe.into())),
    }
}

async fn listed(handle: &Handle, family: Family) -> Result<Vec<RoutingRule>, RedirectError> {
    let version = match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    };
    let rules: Vec<_> = handle
        .rule()
        .get(version)
        .execute()
        .try_collect()
        .await
        .map_err(refused)?;
    let present: Vec<_> = rules.iter().filter_map(read).collect();
    // In the order of adding, and each once.
    Ok(routing_rules(family)
        .into_iter()
        .filter(|rule| present.contains(rule))
        .collect())
}

/// Treats a response of the kernel that there is nothing to do as success.
fn unless(
    done_before: rustix::io::Errno,
    answer: Result<(), rtnetlink::Error>,
) -> Result<(), RedirectError> {
    match answer {
        Err(rtnetlink::Error::NetlinkError(error))
            if error.to_io().raw_os_error() == Some(done_before.raw_os_error()) =>
        {
            Ok(())
        }
        answer => answer.map_err(refused),
    }
}

fn refused(error: rtnetlink::Error) -> RedirectError {
    RedirectError::RoutingRules(Box::new(error))
}

/// Encodes a rule for the kernel.
pub(crate) fn message(rule: &RoutingRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match rule.family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message
        .attributes
        .push(RuleAttribute::Priority(rule.priority));
    if let Some(destination) = rule.destination {
        message.header.dst_len = whole(destination);
        message
            .attributes
            .push(RuleAttribute::Destination(destination));
    }
    if rule.local {
        message
            .attributes
            .push(RuleAttribute::Iifname(LOOPBACK.into()));
    }
    message.header.action = match rule.action {
        RoutingAction::GoTo(priority) => {
            message.attributes.push(RuleAttribute::Goto(priority));
            RuleAction::Goto
        }
        RoutingAction::Prohibit => RuleAction::Prohibit,
        RoutingAction::Nothing => RuleAction::Nop,
    };
    message
}

/// Decodes a rule of the kernel, if it could be one of rolegate's.
pub(crate) fn read(message: &RuleMessage) -> Option<RoutingRule> {
    let header = &message.header;
    let family = match header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let mut priority = 0;
    let mut destination = None;
    let mut local = false;
    let mut target = None;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Destination(address) => destination = Some(*address),
            RuleAttribute::Iifname(name) if name == LOOPBACK => local = true,
            RuleAttribute::Goto(value) => target = Some(*value),
            // Attributes about the table, which does not matter for these rules, and about the
            // rule's origin.
            RuleAttribute::Table(_)
            | RuleAttribute::SuppressPrefixLen(_)
            | RuleAttribute::SuppressIfGroup(_)
            | RuleAttribute::Protocol(_) => {}
            // A condition: the rule matches less than rolegate's rule.
            _ => return None,
        }
    }
    let prefix = destination.map_or(0, whole);
    if header.flags.contains(RuleFlags::Invert)
        || (header.dst_len, header.src_len, header.tos) != (prefix, 0, 0)
    {
        return None;
    }
    let action = match (header.action, target) {
        (RuleAction::Goto, Some(priority)) => RoutingAction::GoTo(priority),
        (RuleAction::Prohibit, None) => RoutingAction::Prohibit,
        (RuleAction::Nop, None) => RoutingAction::Nothing,
        _ => return None,
    };
    Some(RoutingRule {
        family,
        priority,
        destination,
        local,
        action,
    })
}

/// Returns whether a rule is one of rolegate's.
pub(crate) fn is_ours(rule: RoutingRule) -> bool {
    routing_rules(rule.family).contains(&rule)
}

/// Returns the number of bits of an address.
fn whole(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_as_it_was_written() {
        for rule in Family::ALL.into_iter().flat_map(routing_rules) {
            assert_eq!(read(&message(&rule)), Some(rule), "{rule}");
        }
    }

    #[test]
    fn a_rule_with_a_further_condition_is_another_s() {
        let refusing = message(&routing_rules(Family::V4)[2]);
        assert!(read(&refusing).is_some());
        for condition in [
            RuleAttribute::Source([10, 0, 0, 1].into()),
            RuleAttribute::Iifname("eni1".into()),
            RuleAttribute::Oifname("eth0".into()),
            RuleAttribute::FwMark(1),
        ] {
            let mut narrower = refusing.clone();
            narrower.attributes.push(condition.clone());
            assert_eq!(read(&narrower), None, "{condition:?}");
        }
        let mut inverted = refusing.clone();
        inverted.header.flags = RuleFlags::Invert;
        assert_eq!(read(&inverted), None);
        let mut wider = refusing;
        wider.header.dst_len = 16;
        assert_eq!(read(&wider), None);
    }

    #[test]
    fn only_the_expected_refusal_is_success() {
        use std::num::NonZeroI32;

        use netlink_packet_core::ErrorMessage;
        use rustix::io::Errno;

        let refusal = |errno: Errno| {
            let mut message = ErrorMessage::default();
            message.code = NonZeroI32::new(-errno.raw_os_error());
            Err(rtnetlink::Error::NetlinkError(message))
        };
        assert!(unless(Errno::EXIST, Ok(())).is_ok());
        assert!(unless(Errno::EXIST, refusal(Errno::EXIST)).is_ok());
        for other in [
            refusal(Errno::PERM),
            refusal(Errno::NOENT),
            Err(rtnetlink::Error::RequestFailed),
        ] {
            let error = unless(Errno::EXIST, other).unwrap_err().to_string();
            assert!(error.contains("NET_ADMIN"), "{error}");
        }
    }

    #[test]
    fn rules_of_other_families_or_actions_are_another_s() {
        let ours = routing_rules(Family::V6)[2];
        assert!(is_ours(ours));
        let moved = RoutingRule {
            priority: ours.priority + 1000,
            ..ours
        };
        assert!(!is_ours(moved));
        let mut other = message(&ours);
        other.header.family = AddressFamily::Bridge;
        assert_eq!(read(&other), None);
        let mut other = message(&ours);
        other.header.action = RuleAction::Blackhole;
        assert_eq!(read(&other), None);
        let mut other = message(&ours);
        other.attributes.push(RuleAttribute::Goto(9));
        assert_eq!(read(&other), None);
        let changes: [fn(&mut RuleMessage); 2] =
            [|rule| rule.header.src_len = 8, |rule| rule.header.tos = 4];
        for change in changes {
            let mut narrower = message(&ours);
            change(&mut narrower);
            assert_eq!(read(&narrower), None);
        }
    }
}
