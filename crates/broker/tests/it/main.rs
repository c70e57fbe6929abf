//! Brokers and agents over the stand-ins: the whole protocol, in one process.
#![cfg(test)]

mod kiam;
mod raw;
mod serving;
mod stage;
mod stolen;
