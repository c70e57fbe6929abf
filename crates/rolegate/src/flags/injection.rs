//! Flags about the mutating webhook, which adds AWS credentials to pods.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rolegate_admission::app::InjectionOptions;
use rolegate_core::layer::Mode;
use rolegate_core::service_account::WEB_IDENTITY_AUDIENCE;
use rolegate_review::mutation::settings::DEFAULT_FULL_URI;
use rolegate_review::mutation::{AssignedMethod, InjectionSettings, InvalidArn};

use crate::flags::duration;

const INJECTION: &str = "Injection of credentials into pods";

/// A choice of what happens to a value that is not a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InvalidRole {
    /// Admit the pod unchanged, with a warning
    Skip,
    /// Inject the value all the same, with a warning, as EKS's webhook does
    Inject,
}

/// The method of a role that `rolegate.dev/role` or an association assigns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AssignedBy {
    /// The container credentials endpoint of the agents
    ContainerCredentials,
    /// A token that STS exchanges; the role must trust the cluster's OIDC provider
    WebIdentity,
}

/// The mode of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RequireInjection {
    /// Deny the pod
    Enforce,
    /// Admit the pod with a warning
    Audit,
    /// Do not check
    Off,
}

impl From<RequireInjection> for Mode {
    fn from(mode: RequireInjection) -> Self {
        match mode {
            RequireInjection::Enforce => Self::Enforce,
            RequireInjection::Audit => Self::Audit,
            RequireInjection::Off => Self::Off,
        }
    }
}

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct InjectionFlags {
    /// Serve POST /mutate, which adds the variables and the token of AWS web identity or container credentials to the pods of service accounts that have a role
    #[arg(long, env = "ROLEGATE_INJECT", help_heading = INJECTION)]
    inject: bool,
    /// Treatment of a pod of a service account with a role that was created without its credentials
    #[arg(long, value_name = "MODE", env = "ROLEGATE_REQUIRE_INJECTION", default_value = "off", help_heading = INJECTION)]
    require_injection: RequireInjection,
    /// Time for which a pod waits for a new service account, its annotation or its association. At most 4s
    #[arg(long, value_name = "TIME", env = "ROLEGATE_INJECT_WAIT", default_value = "2s", value_parser = duration, help_heading = INJECTION)]
    inject_wait: Duration,
    /// Region for AWS_REGION and AWS_DEFAULT_REGION. By default these variables are not added
    #[arg(long, value_name = "REGION", env = "ROLEGATE_INJECT_REGION", help_heading = INJECTION)]
    inject_region: Option<String>,
    /// Add AWS_STS_REGIONAL_ENDPOINTS=regional, unless a service account's annotation says otherwise
    #[arg(long, env = "ROLEGATE_INJECT_REGIONAL_STS", help_heading = INJECTION)]
    inject_regional_sts: bool,
    /// Audience of web identity tokens
    #[arg(long, value_name = "AUDIENCE", env = "ROLEGATE_INJECT_AUDIENCE", default_value = WEB_IDENTITY_AUDIENCE, help_heading = INJECTION)]
    inject_audience: String,
    /// Expiration of tokens in seconds, from 600 to 86400
    #[arg(long, value_name = "SECONDS", env = "ROLEGATE_INJECT_EXPIRATION", default_value = "86400", value_parser = clap::value_parser!(u32).range(600..=86400), help_heading = INJECTION)]
    inject_expiration: u32,
    /// URI of the container credentials endpoint in AWS_CONTAINER_CREDENTIALS_FULL_URI
    #[arg(long, value_name = "URI", env = "ROLEGATE_INJECT_FULL_URI", default_value = DEFAULT_FULL_URI, help_heading = INJECTION)]
    inject_full_uri: String,
    /// Method for roles of the annotation rolegate.dev/role and of associations. The annotation eks.amazonaws.com/role-arn always means web identity
    #[arg(long, value_name = "METHOD", env = "ROLEGATE_INJECT_ASSIGNED", default_value = "container-credentials", help_heading = INJECTION)]
    inject_assigned: AssignedBy,
    /// Add the container credentials endpoint to NO_PROXY of containers that do not set it
    #[arg(long, env = "ROLEGATE_INJECT_NO_PROXY", help_heading = INJECTION)]
    inject_no_proxy: bool,
    /// Do not add AWS_ROLE_SESSION_NAME, which names the pod in CloudTrail
    #[arg(long, env = "ROLEGATE_INJECT_NO_SESSION_NAME", help_heading = INJECTION)]
    inject_no_session_name: bool,
    /// Treatment of a role annotation that is not a role
    #[arg(long, value_name = "CHOICE", env = "ROLEGATE_INJECT_INVALID_ROLE", default_value = "skip", help_heading = INJECTION)]
    inject_invalid_role: InvalidRole,
    /// Read roles from ConfigMap pod-identity-webhook of this process's namespace too
    #[arg(long, env = "ROLEGATE_INJECT_CONFIG_MAP", help_heading = INJECTION)]
    inject_config_map: bool,
    /// File with service accounts that have container credentials, in the format of EKS's webhook
    #[arg(long, value_name = "FILE", env = "ROLEGATE_INJECT_IDENTITIES", help_heading = INJECTION)]
    inject_identities: Option<PathBuf>,
}

/// Maximum time for which a pod waits. The API server's registration allows five seconds for a call.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(4);

impl InjectionFlags {
    /// Returns the options; `None` if the mutating webhook is off. `namespace` is that of the
    /// ConfigMap, `instance` the name of this replica.
    pub(crate) fn options(self, namespace: &str, instance: &str) -> Option<InjectionOptions> {
        if !self.inject {
            return None;
        }
        let mut settings = InjectionSettings {
            full_uri: self.inject_full_uri,
            expiration_seconds: self.inject_expiration,
            region: self.inject_region.filter(|region| !region.is_empty()),
            regional_sts: self.inject_regional_sts,
            session_name: !self.inject_no_session_name,
            no_proxy: self.inject_no_proxy,
            invalid_arn: match self.inject_invalid_role {
                InvalidRole::Skip => InvalidArn::Skip,
                InvalidRole::Inject => InvalidArn::Inject,
            },
            assigned: match self.inject_assigned {
                AssignedBy::ContainerCredentials => AssignedMethod::ContainerCredentials,
                AssignedBy::WebIdentity => AssignedMethod::WebIdentity,
            },
            ..InjectionSettings::default()
        };
        settings.web_identity.audience = self.inject_audience;
        Some(InjectionOptions {
            settings,
            wait: self.inject_wait.min(MAX_WAIT),
            config_map_namespace: self.inject_config_map.then(|| namespace.to_owned()),
            identities: self.inject_identities,
            require: self.require_injection.into(),
            events_as: Some(instance.to_owned()),
            is_compatible: false,
        })
    }
}
