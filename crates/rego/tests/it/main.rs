//! The crate from outside: policies come in as ConfigMaps, questions get answers.
#![cfg(test)]

mod article;
mod books;
mod bounds;
mod corpus;
mod doors;
mod properties;
mod stage;
mod testing;
