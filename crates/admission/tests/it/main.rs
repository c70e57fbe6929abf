//! The gate, judged by the table of cases and by what strangers may send.
#![cfg(test)]

mod agreement;
mod bounds;
mod outcome;
mod policies;
mod registration;
mod table;
mod world;
