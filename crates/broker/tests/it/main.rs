//! Brokers and agents over the stand-ins: the whole protocol, in one process.
#![cfg(test)]

#![cfg(test)]

mod serving;
mod stage;
mod stolen;
