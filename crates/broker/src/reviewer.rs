//! Whoever says whose tokens are: the API server.

use rolegate_kube::token_review::{Reviewed, review};

/// Asks the API server. Cheap to clone.
#[derive(Clone)]
pub struct Reviewer(kube::Client);

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").finish_non_exhaustive()
    }
}

impl Reviewer {
    /// Asks by this client, which needs `create` on `tokenreviews`.
    pub fn new(client: kube::Client) -> Self {
        Self(client)
    }

    /// Asks whose `token` is, for `audience`.
    ///
    /// # Errors
    /// A sentence, where there is no answer.
    pub async fn review(&self, token: &str, audience: &str) -> Result<Reviewed, String> {
        review(self.0.clone(), token, audience).await
    }
}
