//! Translates the Helm values of the charts of kube2iam and kiam into values of rolegate's chart.
//!
//! The old charts are translated as their templates rendered them, not as their values read:
//! `old_values` holds the values and reports those that no translation read, `kube2iam` and
//! `kiam` are the translations, and `output` collects the new values with a note for each value
//! that changes its meaning, is dropped, or needs a decision. No note contains a secret.
//!
//! `associations` imports roles of service accounts from EKS Pod Identity and the EKS webhook.
//!
//! The crate is pure: the caller reads files and lists pods.

mod associations;
mod common;
mod default_role;
mod duration;
mod extra_args;
mod kiam;
mod kube2iam;
mod note;
mod old_values;
mod output;
mod read;
mod route_regexp;
mod secrets;
mod translation;

pub use associations::{ImportedAssociations, import_associations};
pub use note::{Note, NoteKind};
pub use read::{Chart, MigrateError, ValuesFile};
pub use translation::{Translation, translate};
