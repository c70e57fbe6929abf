//! Real rules and real packets: pods as network namespaces, a node that forwards, and a host behind
//! it with the metadata addresses. Needs root, `ip`, `nft` and `iptables`.

#![cfg(test)]

mod attachment;
mod check;
mod endpoint;
mod harness;
mod losses;
mod reconciler;
mod redirect;
