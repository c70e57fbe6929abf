//! The kernel's notifications that a program removed one of rolegate's rules or inserted one before
//! it.
//!
//! nftables and routing rules report every change by any program. Legacy iptables reports nothing,
//! so its changes are found only by checking.

use std::io;
use std::os::fd::OwnedFd;

use netlink_packet_core::{
    NLA_HEADER_SIZE, NetlinkBuffer, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use prometheus_client::metrics::counter::Counter;
use rolegate_netlink::{Notifications, RECEIVE_BUFFER, Reading, Source, messages, readable};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;

use crate::Backend;
use crate::routing;
use crate::rules::{NFT_TABLE, iptables_chains};

/// Maximum number of reads of one socket in a row, so that one check covers a burst and other tasks
/// can run.
const MAX_READS: usize = 1024;

/// The multicast group of changes of nftables (`NFNLGRP_NFTABLES`).
const NFNLGRP_NFTABLES: u32 = 7;
/// The nfnetlink subsystem of nftables, the upper byte of a message's type.
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// Size of nfnetlink's own header before the attributes, in bytes.
const NFGENMSG: usize = 4;
/// The attribute of the table, with the same number in all kinds of messages.
const NFTA_TABLE: u16 = 1;
/// The attribute of the chain of a rule.
const NFTA_RULE_CHAIN: u16 = 2;
/// The attribute of the name of a chain, in messages about chains.
const NFTA_CHAIN_NAME: u16 = 3;
/// Messages about whole tables: new, deleted, and deleted if it exists.
const OF_TABLES: [u16; 3] = [0, 2, 26];

/// Notifications of the network namespace in which they were opened.
pub(crate) struct Changes {
    backend: Backend,
    routing: Follower<Notifications>,
    routing_readable: AsyncFd<OwnedFd>,
    nftables: Follower<Notifications>,
    nftables_readable: AsyncFd<OwnedFd>,
}

impl Changes {
    /// Subscribes; it needs a tokio runtime. `losses` counts how often the kernel drops
    /// notifications.
    ///
    /// # Errors
    /// Returns an error if the kernel lacks such notifications, or denies them.
    pub(crate) fn open(backend: Backend, losses: &Counter) -> io::Result<Self> {
        let rules = [
            MulticastGroup::Ipv4Rule as u32,
            MulticastGroup::Ipv6Rule as u32,
        ];
        let routing = Notifications::open(NETLINK_ROUTE, &rules, RECEIVE_BUFFER)?;
        let groups = [NFNLGRP_NFTABLES];
        let nftables = Notifications::open(NETLINK_NETFILTER, &groups, RECEIVE_BUFFER)?;
        Ok(Self {
            backend,
            routing_readable: readable(routing.socket()?)?,
            routing: Follower::new(routing, losses),
            nftables_readable: readable(nftables.socket()?)?,
            nftables: Follower::new(nftables, losses),
        })
    }

    /// Waits for a change of the redirect's rules. Reads other pending notifications too, so that
    /// one check covers a burst.
    ///
    /// # Errors
    /// Returns an error if a socket is closed.
    pub(crate) async fn next(&mut self) -> io::Result<()> {
        loop {
            let routing = self.routing.read(took_routing_rule)?;
            let backend = self.backend;
            let nftables = self.nftables.read(|bytes| concerns(backend, bytes))?;
            if routing.changed || nftables.changed {
                return Ok(());
            }
            if !(routing.all && nftables.all) {
                tokio::task::yield_now().await;
                continue;
            }
            // Cleared before the next read: a notification during the read wakes this again.
            tokio::select! {
                ready = self.routing_readable.readable() => ready?.clear_ready(),
                ready = self.nftables_readable.readable() => ready?.clear_ready(),
            }
        }
    }
}

/// A source of notifications, and whether some were lost.
struct Follower<S> {
    source: S,
    losses: Counter,
    /// True from a loss until everything was read. The kernel may silently drop more until then.
    lost: bool,
}

/// The result of reading the notifications so far.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    /// True if a notification concerns the redirect, or if one that was lost may have.
    changed: bool,
    /// True if there was nothing left to read.
    all: bool,
}

impl<S: Source> Follower<S> {
    fn new(source: S, losses: &Counter) -> Self {
        Self {
            source,
            losses: losses.clone(),
            lost: false,
        }
    }

    /// Reads the pending notifications, up to a limit, and filters each message. Unreadable
    /// messages may concern the redirect. During a loss each read counts as a change, since the
    /// previous check may have been too early.
    fn read(&mut self, concerns: impl Fn(&[u8]) -> bool) -> io::Result<Read> {
        let mut changed = self.lost;
        for _ in 0..MAX_READS {
            match self.source.read()? {
                Reading::Messages(chunk) => {
                    changed |= messages(chunk).any(|message| message.is_none_or(&concerns));
                }
                Reading::Lost => {
                    self.losses.inc();
                    self.lost = true;
                    changed = true;
                }
                Reading::Drained => {
                    self.lost = false;
                    return Ok(Read { changed, all: true });
                }
            }
        }
        Ok(Read {
            changed,
            all: false,
        })
    }
}

/// Returns whether a message reports the removal of one of rolegate's routing rules.
fn took_routing_rule(message: &[u8]) -> bool {
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
        Ok(message) => match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRule(rule)) => {
                routing::read(&rule).is_some_and(routing::is_ours)
            }
            NetlinkPayload::Overrun(_) => true,
            _ => false,
        },
        Err(_) => true,
    }
}

/// Returns whether an nftables message concerns the redirect of `backend`. Other tables change all
/// the time, in particular those of the service proxy.
fn concerns(backend: Backend, message: &[u8]) -> bool {
    let Ok(message) = NetlinkBuffer::new_checked(message) else {
        return true;
    };
    let kind = message.message_type();
    if kind >> 8 != NFNL_SUBSYS_NFTABLES {
        return false;
    }
    let about = |attribute| text(message.payload(), attribute);
    let Some(table) = about(NFTA_TABLE) else {
        return false;
    };
    match backend {
        Backend::None => false,
        Backend::Nftables => table == NFT_TABLE,
        Backend::Iptables(_) => {
            let names = [about(NFTA_RULE_CHAIN), about(NFTA_CHAIN_NAME)];
            iptables_chains()
                .filter(|(ours, _)| *ours == table)
                .any(|(_, chain)| {
                    OF_TABLES.contains(&(kind & 0xff)) || names.contains(&Some(chain))
                })
        }
    }
}

/// Returns an attribute of an nftables message, if it is text.
fn text(payload: &[u8], attribute: u16) -> Option<&str> {
    let found = NlasIterator::new(payload.get(NFGENMSG..)?)
        .map_while(Result::ok)
        .find(|found| found.kind() == attribute)?;
    let length = usize::from(found.length());
    let value = found.into_inner().get(NLA_HEADER_SIZE..length)?;
    std::str::from_utf8(value.strip_suffix(b"\0")?).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::rule::RuleAttribute;

    use super::*;
    use crate::Flavour;
    use crate::rules::{Family, routing_rules};

    /// A scripted source for tests. It is caught up after the last read.
    #[derive(Debug, Default)]
    struct Script {
        readings: VecDeque<Option<Vec<u8>>>,
        current: Vec<u8>,
    }

    impl Script {
        /// Adds a read of these bytes.
        fn some(&mut self, bytes: &[u8]) {
            self.readings.push_back(Some(bytes.to_vec()));
        }

        /// Adds a loss.
        fn lost(&mut self) {
            self.readings.push_back(None);
        }
    }

    impl Source for Script {
        fn read(&mut self) -> io::Result<Reading<'_>> {
            Ok(match self.readings.pop_front() {
                Some(Some(bytes)) => {
                    self.current = bytes;
                    Reading::Messages(&self.current)
                }
                Some(None) => Reading::Lost,
                None => Reading::Drained,
            })
        }
    }

    const IPTABLES: Backend = Backend::Iptables(Flavour::Nft);
    const NEW_TABLE: u8 = 0;
    const DELETE_TABLE: u8 = 2;
    const NEW_CHAIN: u8 = 3;
    const NEW_RULE: u8 = 6;
    const DELETE_RULE: u8 = 8;
    const NEW_ELEMENT: u8 = 12;

    fn netlink(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(payload);
        message
    }

    /// Creates an nftables message with text attributes.
    fn nftables(kind: u8, attributes: &[(u16, &str)]) -> Vec<u8> {
        let mut payload = vec![1, 0, 0, 0];
        for (number, text) in attributes {
            let length = u16::try_from(4 + text.len() + 1).unwrap();
            payload.extend(length.to_ne_bytes());
            payload.extend(number.to_ne_bytes());
            payload.extend(text.as_bytes());
            payload.resize((payload.len() + 1).next_multiple_of(4), 0);
        }
        netlink(10 << 8 | u16::from(kind), &payload)
    }

    fn rule_message(delete: bool, change: impl FnOnce(&mut Vec<RuleAttribute>)) -> Vec<u8> {
        let mut rule = routing::message(&routing_rules(Family::V4)[2]);
        change(&mut rule.attributes);
        let payload = if delete {
            RouteNetlinkMessage::DelRule(rule)
        } else {
            RouteNetlinkMessage::NewRule(rule)
        };
        let mut message = NetlinkMessage::new(
            NetlinkHeader::default(),
            NetlinkPayload::InnerMessage(payload),
        );
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn only_messages_about_the_redirect_matter() {
        let ours = [(1, "rolegate"), (2, "forward")];
        for kind in [NEW_TABLE, DELETE_TABLE, NEW_CHAIN, NEW_RULE, DELETE_RULE] {
            assert!(
                concerns(Backend::Nftables, &nftables(kind, &ours)),
                "{kind}"
            );
            assert!(!concerns(IPTABLES, &nftables(kind, &ours)), "{kind}");
        }
        let proxy = nftables(NEW_ELEMENT, &[(1, "kube-proxy"), (2, "service-ips")]);
        assert!(!concerns(Backend::Nftables, &proxy) && !concerns(IPTABLES, &proxy));
        for (kind, attributes, expected) in [
            (DELETE_TABLE, &[(1, "nat")][..], true),
            (DELETE_TABLE, &[(1, "mangle")], false),
            (DELETE_RULE, &[(1, "nat"), (2, "ROLEGATE-PREROUTING")], true),
            (NEW_RULE, &[(1, "filter"), (2, "FORWARD")], true),
            (NEW_RULE, &[(1, "filter"), (2, "PREROUTING")], false),
            (NEW_RULE, &[(1, "nat"), (2, "KUBE-SERVICES")], false),
            (NEW_CHAIN, &[(1, "raw"), (3, "ROLEGATE-RAW")], true),
            (NEW_CHAIN, &[(1, "nat"), (3, "KUBE-SEP-X")], false),
        ] {
            let message = nftables(kind, attributes);
            assert_eq!(concerns(IPTABLES, &message), expected, "{attributes:?}");
            assert!(!concerns(Backend::Nftables, &message), "{attributes:?}");
        }
        // Another nfnetlink subsystem, such as connection tracking.
        assert!(!concerns(
            Backend::Nftables,
            &netlink(1 << 8, &[2, 0, 0, 0])
        ));
    }

    #[test]
    fn removed_own_routing_rules_are_changes() {
        assert!(took_routing_rule(&rule_message(true, |_| {})));
        assert!(!took_routing_rule(&rule_message(false, |_| {})));
        let of_a_pod = |attributes: &mut Vec<RuleAttribute>| {
            attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Priority(_)));
            attributes.push(RuleAttribute::Priority(1536));
        };
        assert!(!took_routing_rule(&rule_message(true, of_a_pod)));
    }

    #[test]
    fn each_message_of_a_read_counts_even_if_truncated() {
        let (first, second) = (
            nftables(NEW_CHAIN, &[(1, "abc")]),
            rule_message(true, |_| {}),
        );
        let mut chunk = first.clone();
        chunk.resize(chunk.len().next_multiple_of(4), 0);
        chunk.extend(&second);
        let seen: Vec<_> = messages(&chunk).collect();
        assert_eq!(seen, [Some(&first[..]), Some(&second[..])]);
        let cut = &chunk[..chunk.len() - 4];
        assert_eq!(messages(cut).collect::<Vec<_>>(), [Some(&first[..]), None]);
    }

    fn follower(fill: impl FnOnce(&mut Script)) -> Follower<Script> {
        let mut script = Script::default();
        fill(&mut script);
        Follower::new(script, &Counter::default())
    }

    fn read(follower: &mut Follower<Script>) -> Read {
        follower.read(took_routing_rule).unwrap()
    }

    #[test]
    fn bursts_are_one_change_and_unrelated_messages_none() {
        let (added, removed) = (rule_message(false, |_| {}), rule_message(true, |_| {}));
        for (messages, changed) in [
            (&[&added, &added][..], false),
            (&[&removed, &added, &removed], true),
        ] {
            let mut follower = follower(|script| messages.iter().for_each(|m| script.some(m)));
            assert_eq!(read(&mut follower), Read { changed, all: true });
            let nothing = Read {
                changed: false,
                all: true,
            };
            assert_eq!(read(&mut follower), nothing);
        }
    }

    #[test]
    fn each_read_during_a_loss_is_a_change() {
        let other = rule_message(false, |_| {});
        let mut follower = follower(|script| {
            script.lost();
            (0..2 * MAX_READS).for_each(|_| script.some(&other));
        });
        let change = |all| Read { changed: true, all };
        assert_eq!(read(&mut follower), change(false));
        assert_eq!(read(&mut follower), change(false));
        // Up to the one that finds the end.
        assert_eq!(read(&mut follower), change(true));
        assert!(!read(&mut follower).changed);
        assert_eq!(follower.losses.get(), 1);
    }
}
