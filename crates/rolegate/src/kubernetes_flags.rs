//! Flags about the API server, shared by every command that asks it.

use std::path::PathBuf;

use clap::Args;
use rolegate_kube::client::ClientOptions;

const KUBERNETES: &str = "Kubernetes";

/// How the API server is reached.
#[derive(Debug, Args)]
pub(crate) struct KubernetesFlags {
    /// URL of the API server; by default the pod's own cluster, then the kubeconfig
    #[arg(long, value_name = "URL", env = "ROLEGATE_API_SERVER", help_heading = KUBERNETES)]
    pub(crate) api_server: Option<String>,
    /// Token for the API server
    #[arg(long, value_name = "TOKEN", env = "ROLEGATE_API_TOKEN", hide_env_values = true, help_heading = KUBERNETES)]
    pub(crate) api_token: Option<String>,
    /// Do not check the API server's certificate
    #[arg(long, env = "ROLEGATE_INSECURE", help_heading = KUBERNETES)]
    pub(crate) insecure: bool,
    /// Kubeconfig to use instead of the pod's own service account
    #[arg(long, value_name = "FILE", env = "ROLEGATE_KUBECONFIG", help_heading = KUBERNETES)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig, if not its current one
    #[arg(long, value_name = "NAME", env = "ROLEGATE_CONTEXT", help_heading = KUBERNETES)]
    pub(crate) context: Option<String>,
}

impl KubernetesFlags {
    /// What a client is made of.
    pub(crate) fn client(&self) -> ClientOptions {
        ClientOptions {
            api_server: self.api_server.clone(),
            api_token: self.api_token.clone().map(Into::into),
            insecure: self.insecure,
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
        }
    }
}
