//! Brokers and agents with stand-ins: the whole protocol in one process.
#![cfg(test)]

mod away;
mod certificates;
mod clocks;
mod faults;
mod harness;
mod hostile;
mod kiam;
mod mute;
mod net;
mod raw;
mod serving;
mod stolen;
mod tokens;
