//! Brokers and agents over the stand-ins: the whole protocol, in one process.

mod serving;
mod stage;
mod stolen;
