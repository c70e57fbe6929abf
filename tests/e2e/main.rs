//! `rolegate agent` from end to end, with independent components instead of stand-ins: a real API
//! server, network namespaces as node and pods, real redirect rules, moto as STS, and unmodified
//! boto3 and AWS CLI. Needs root.

#![cfg(test)]
#![allow(
    clippy::too_many_lines,
    reason = "a test is one scenario, from its start to its end"
)]

mod admission;
mod agrees;
mod alerts;
mod ask;
mod asking;
mod bridge;
mod broker;
mod changes;
mod commands;
mod dumps;
mod events;
mod examples;
mod fixture;
mod kube2iam;
mod lifecycle;
mod loopback;
mod memory;
mod metrics;
mod not_known;
mod policy_command;
mod redirect;
mod sdk;
mod shares;
mod shim;
mod tokens;
mod upgrade;
mod usage;
