//! The kernel's notifications that something took a rule of ours away or put one in front of it.
//!
//! nftables reports every change, whichever program made it, and so do the routing rules. Legacy
//! iptables reports nothing: its changes are found only by checking.

use std::io;

use futures::FutureExt;
use netlink_packet_core::{
    NLA_HEADER_SIZE, NetlinkBuffer, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use rolegate_core::redirect::{NFT_TABLE, iptables_chains};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use super::Backend;
use super::routing;

/// Bytes of notifications that the kernel keeps for us. When there are more it drops some and says
/// so, which counts as a change.
const RECEIVE_BUFFER: i32 = 1024 * 1024;
/// Bytes of one read; the kernel's batches are smaller.
const CHUNK: usize = 64 * 1024;

/// The multicast group of changes of nftables (`NFNLGRP_NFTABLES`).
const NFNLGRP_NFTABLES: u32 = 7;
/// The part of nfnetlink that nftables is, the upper byte of a message's type.
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// Bytes of nfnetlink's own header, before the attributes.
const NFGENMSG: usize = 4;
/// The table that a message is about: the same number in all kinds of messages.
const NFTA_TABLE: u16 = 1;
/// The chain that a rule is in.
const NFTA_RULE_CHAIN: u16 = 2;
/// The name of a chain, in messages about chains.
const NFTA_CHAIN_NAME: u16 = 3;
/// Messages about whole tables: new, deleted, and deleted if it is there.
const OF_TABLES: [u16; 3] = [0, 2, 26];

/// Notifications of the network namespace that they were opened in.
pub(super) struct Changes {
    backend: Backend,
    routing: Follower,
    nftables: Follower,
}

impl Changes {
    /// Subscribes; needs a tokio runtime.
    ///
    /// # Errors
    /// Returns an error if the kernel lacks such notifications, or denies them to us.
    pub(super) fn open(backend: Backend) -> io::Result<Self> {
        Ok(Self {
            backend,
            routing: Follower::open(
                NETLINK_ROUTE,
                &[
                    MulticastGroup::Ipv4Rule as u32,
                    MulticastGroup::Ipv6Rule as u32,
                ],
            )?,
            nftables: Follower::open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])?,
        })
    }

    /// Waits until something has changed that the redirect is made of. What else has changed until
    /// then is read too, so that one look answers a burst.
    ///
    /// # Errors
    /// Returns an error if a socket has ended.
    pub(super) async fn next(&mut self) -> io::Result<()> {
        let mut changed = self.read().await?;
        while !changed {
            changed = self.read().await?;
        }
        while let Some(more) = self.read().now_or_never() {
            more?;
        }
        Ok(())
    }

    /// Reads some notifications, and returns whether any of them concerns us.
    async fn read(&mut self) -> io::Result<bool> {
        let backend = self.backend;
        tokio::select! {
            changed = self.routing.read(took_routing_rule) => changed,
            changed = self.nftables.read(|bytes| concerns(backend, bytes)) => changed,
        }
    }
}

/// One subscribed socket.
struct Follower {
    socket: TokioSocket,
    chunk: Vec<u8>,
}

impl Follower {
    fn open(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER)?;
        for group in groups {
            socket.socket_mut().add_membership(*group)?;
        }
        Ok(Self {
            socket,
            chunk: Vec::with_capacity(CHUNK),
        })
    }

    /// Reads once, and asks about each message that came. What can't be read may concern us.
    async fn read(&mut self, concerns: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
        self.chunk.clear();
        match self.socket.recv(&mut self.chunk).await {
            Ok(_) => Ok(messages(&self.chunk).any(|message| message.is_none_or(&concerns))),
            Err(error) if error.raw_os_error() == Some(overrun()) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// The kernel had more to tell than it kept.
fn overrun() -> i32 {
    rustix::io::Errno::NOBUFS.raw_os_error()
}

/// The messages of one read; nothing for one that is cut off, which is the last.
fn messages(mut chunk: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        if chunk.is_empty() {
            return None;
        }
        let length = NetlinkBuffer::new_checked(chunk)
            .ok()
            .and_then(|message| usize::try_from(message.length()).ok());
        let message = length.and_then(|length| chunk.get(..length));
        // Messages begin at multiples of four bytes.
        chunk = length
            .and_then(|length| chunk.get(length.next_multiple_of(4)..))
            .unwrap_or_default();
        Some(message)
    })
}

/// Returns whether a message says that one of our routing rules was removed.
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

/// Returns whether an nftables message concerns the redirect of `backend`. The kernel's other
/// tables change all the time, above all those of the service proxy.
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

/// An attribute of a message of nftables, if it is text.
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
    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::rule::RuleAttribute;
    use rolegate_core::redirect::{Family, routing_rules};

    use super::*;
    use crate::redirect::Flavour;

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

    /// A message of nftables with attributes that are text.
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
    fn only_what_the_redirect_is_made_of_is_looked_at() {
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
        // Another part of nfnetlink, such as the table of connections.
        assert!(!concerns(
            Backend::Nftables,
            &netlink(1 << 8, &[2, 0, 0, 0])
        ));
    }

    #[test]
    fn a_routing_rule_of_ours_that_goes_is_a_change_and_others_are_not() {
        assert!(took_routing_rule(&rule_message(true, |_| {})));
        assert!(!took_routing_rule(&rule_message(false, |_| {})));
        let of_a_pod = |attributes: &mut Vec<RuleAttribute>| {
            attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Priority(_)));
            attributes.push(RuleAttribute::Priority(1536));
        };
        assert!(!took_routing_rule(&rule_message(true, of_a_pod)));
    }

    #[test]
    fn each_message_of_a_read_is_seen_and_one_that_is_cut_off_counts() {
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
        assert_eq!(messages(&[]).count(), 0);
    }
}
