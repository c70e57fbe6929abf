//! The credentials document of the metadata endpoint.

use rolegate_core::document;
use rolegate_sessions::{Document, Session};
use zeroize::Zeroizing;

/// The document of `iam/security-credentials/ROLE`.
pub(super) struct CredentialsDocument;

impl Document for CredentialsDocument {
    fn render(session: &Session) -> Zeroizing<Vec<u8>> {
        document::credentials(&session.credentials)
    }
}
