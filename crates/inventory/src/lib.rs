//! One snapshot of a cluster: its objects, and the rules that they make.
//!
//! Objects come from an API server ([`cluster::Cluster`]) or from files ([`files`]), and
//! [`objects::Objects`] holds them with their files and lines. [`load`] converts them into rules,
//! pods and grants: [`in_force`] finds the configuration that applies, [`offline`] fills the rule
//! store that agents fill from watches, and [`basis`] names the sources of the result.
//!
//! The crate prints nothing. Its errors are typed; a command adds the flags that correct them.

mod base_arn;
pub mod basis;
pub mod cluster;
pub mod files;
pub mod ignore;
pub mod in_force;
pub mod kinds;
pub mod load;
pub mod names;
pub mod object;
pub mod objects;
pub mod offline;
pub mod overlay;

pub use base_arn::any_base;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();
