//! The credentials document of the endpoint.

use rolegate_core::document::container_credentials;
use rolegate_sessions::{Document, Session};
use zeroize::Zeroizing;

/// The document of `/v1/credentials`.
pub(super) struct ContainerDocument;

impl Document for ContainerDocument {
    fn render(session: &Session) -> Zeroizing<Vec<u8>> {
        container_credentials(&session.role, &session.credentials)
    }
}
