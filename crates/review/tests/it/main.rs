//! Tests of validation: a table of cases, and hostile input.
#![cfg(test)]

mod agreement;
mod bounds;
mod injection;
mod outcome;
mod policies;
mod registration;
mod table;
mod world;

#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();
