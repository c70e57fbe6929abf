//! The cluster as an OIDC provider of IAM, with the documents that its API server publishes.

use rolegate_devkit::OidcProvider;

use super::control_plane::API_PORT;
use super::environment::CONTROL_PLANE_ADDRESS;
use super::{DEADLINE, TestCluster};
use crate::eventually;

/// The issuer of the tokens of ServiceAccounts.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The issuer's host, which STS reaches at the API server.
pub(super) const ISSUER_HOST: &str = "kubernetes.default.svc.cluster.local";
/// Publishes the documents, as clusters do whose issuer is their API server.
const PUBLISH: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: published-issuer }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:service-account-issuer-discovery' }
subjects: [{ apiGroup: rbac.authorization.k8s.io, kind: Group, name: 'system:unauthenticated' }]
";

impl TestCluster {
    /// Publishes the documents of the cluster's issuer, creates its OIDC provider in the account of
    /// tests with the client ID `sts.amazonaws.com`, and returns the provider's ARN.
    ///
    /// # Errors
    /// Returns an error if the documents cannot be read.
    pub async fn create_oidc_provider(&self) -> anyhow::Result<String> {
        self.apply(PUBLISH).await?;
        let keys = format!("https://{CONTROL_PLANE_ADDRESS}:{API_PORT}/openid/v1/jwks");
        let published = format!("curl --silent --fail --insecure {keys}");
        eventually(DEADLINE, async || self.shell()?.run(&published).await?.ok()).await?;
        let provider = OidcProvider {
            account_id: "123456789012".into(),
            url: ISSUER.into(),
            client_ids: vec!["sts.amazonaws.com".into()],
            authorities: self.control_plane.authority.pem(),
            address: Some((CONTROL_PLANE_ADDRESS, API_PORT).into()),
        };
        let arn = provider.arn();
        self.sts().create_oidc_provider(provider)?;
        Ok(arn)
    }
}
