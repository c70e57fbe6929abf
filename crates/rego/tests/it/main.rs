//! The crate from outside: policies come in as ConfigMaps, questions get answers.
#![cfg(test)]

mod article;
mod books;
mod bounds;
mod corpus;
mod doors;
mod meaning;
mod properties;
mod references;
mod stage;
mod testing;
