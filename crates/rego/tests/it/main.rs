//! Tests of the crate's public interface with ConfigMaps and reviews.
#![cfg(test)]

mod agents;
mod article;
mod books;
mod bounds;
mod corpus;
mod helpers;
mod meaning;
mod properties;
mod references;
mod testing;

#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();
