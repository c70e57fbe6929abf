//! The examination of a cluster: rolegate's kinds, rights, processes, webhook and rules.

mod checks;
mod facts;
mod gather;
mod process;
mod rights;
mod table;

use jiff::Timestamp;
use rolegate_kube::client::ClientOptions;

use crate::Limits;
use crate::check::run;
use crate::objects::ServerVersion;
use crate::reader::{DoctorError, Reader};
use crate::report::Report;

/// Examines a cluster in which rolegate runs in `namespace`. `now` is compared with certificates
/// and Leases.
///
/// # Errors
/// Returns [`DoctorError`] if no cluster is configured, or it does not respond.
pub async fn examine(
    client: &ClientOptions,
    namespace: &str,
    limits: Limits,
    now: Timestamp,
) -> Result<Report, DoctorError> {
    let (reader, version) = Reader::connect::<ServerVersion>(client, limits).await?;
    let facts = gather::gather(&reader, version, namespace, now).await;
    Ok(Report::new(reader.subject(), run(table::CHECKS, &facts)))
}
