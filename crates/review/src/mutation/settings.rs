//! The settings of the injection that hold for all pods.

use rolegate_core::annotation::EKS_PREFIX;
use rolegate_core::service_account::{CONTAINER_CREDENTIALS_AUDIENCE, WEB_IDENTITY_AUDIENCE};

/// Default path of web identity tokens, as in the EKS webhook.
pub const WEB_IDENTITY_MOUNT_PATH: &str = "/var/run/secrets/eks.amazonaws.com/serviceaccount";
/// Default path of tokens for container credentials, as in the EKS webhook.
pub const CONTAINER_CREDENTIALS_MOUNT_PATH: &str =
    "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount";
/// Default name of the volume and of the file of tokens for container credentials, as in the EKS
/// webhook.
pub const CONTAINER_CREDENTIALS_VOLUME: &str = "eks-pod-identity-token";
/// Default URI of the container credentials endpoint, as on EKS.
pub const DEFAULT_FULL_URI: &str = "http://169.254.170.23/v1/credentials";
/// Minimum expiration of a token that the API server issues, in seconds.
pub const MIN_EXPIRATION_SECONDS: u32 = 600;
/// Maximum and default expiration, in seconds.
pub const MAX_EXPIRATION_SECONDS: u32 = 86_400;
/// Range below [`MAX_EXPIRATION_SECONDS`] over which the default expiration of container credentials
/// is spread, in seconds, so that the tokens of pods that started together are not renewed together.
const JITTER_SECONDS: u32 = 7_200;

/// The projected token of one method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSettings {
    /// The token's audience, unless the service account names another one.
    pub audience: String,
    /// The path at which containers mount the volume.
    pub mount_path: String,
    /// The name of the volume.
    pub volume: String,
    /// The name of the file in the volume.
    pub file: String,
}

/// The treatment of a role that is not an ARN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InvalidArn {
    /// The pod is admitted unchanged, with a warning.
    #[default]
    Skip,
    /// The value is injected all the same, with a warning, as EKS's webhook does.
    Inject,
}

/// The method for roles that `rolegate.dev/role` or an association assigns. The annotation
/// `eks.amazonaws.com/role-arn` always means web identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AssignedMethod {
    /// Container credentials: rolegate decides at each request, and the role needs no OIDC provider.
    #[default]
    ContainerCredentials,
    /// Web identity, for clusters without the container credentials endpoint.
    WebIdentity,
}

/// The settings. The defaults are those of EKS's webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InjectionSettings {
    /// The prefix of annotations of service accounts and pods.
    pub annotation_prefix: String,
    /// The token for STS.
    pub web_identity: TokenSettings,
    /// The token for the container credentials endpoint.
    pub container_credentials: TokenSettings,
    /// The URI of the container credentials endpoint.
    pub full_uri: String,
    /// The expiration of tokens, in seconds, unless a pod or service account sets another one.
    pub expiration_seconds: u32,
    /// The Region for `AWS_REGION` and `AWS_DEFAULT_REGION`. `None`: the variables are not added.
    pub region: Option<String>,
    /// True to add `AWS_STS_REGIONAL_ENDPOINTS=regional` by default.
    pub regional_sts: bool,
    /// True to add `AWS_ROLE_SESSION_NAME`, so that CloudTrail names the pod.
    pub session_name: bool,
    /// True to exclude the container credentials endpoint from proxies by `NO_PROXY`.
    pub no_proxy: bool,
    /// The treatment of a role that is not an ARN.
    pub invalid_arn: InvalidArn,
    /// The method for roles that are not assigned by `eks.amazonaws.com/role-arn`.
    pub assigned: AssignedMethod,
}

impl Default for InjectionSettings {
    fn default() -> Self {
        Self {
            annotation_prefix: EKS_PREFIX.into(),
            web_identity: TokenSettings {
                audience: WEB_IDENTITY_AUDIENCE.into(),
                mount_path: WEB_IDENTITY_MOUNT_PATH.into(),
                volume: "aws-iam-token".into(),
                file: "token".into(),
            },
            container_credentials: TokenSettings {
                audience: CONTAINER_CREDENTIALS_AUDIENCE.into(),
                mount_path: CONTAINER_CREDENTIALS_MOUNT_PATH.into(),
                volume: CONTAINER_CREDENTIALS_VOLUME.into(),
                file: CONTAINER_CREDENTIALS_VOLUME.into(),
            },
            full_uri: DEFAULT_FULL_URI.into(),
            expiration_seconds: MAX_EXPIRATION_SECONDS,
            region: None,
            regional_sts: false,
            session_name: true,
            no_proxy: false,
            invalid_arn: InvalidArn::default(),
            assigned: AssignedMethod::default(),
        }
    }
}

impl InjectionSettings {
    /// Returns the key of an annotation.
    pub(super) fn annotation(&self, name: &str) -> String {
        format!("{}/{name}", self.annotation_prefix)
    }

    /// Returns the expiration within the bounds of Kubernetes and of EKS's webhook, in seconds. The
    /// maximum is spread by `jitter`, if it is given.
    pub(super) fn expiration(&self, asked: Option<u32>, jitter: Option<u32>) -> u32 {
        let asked = asked.filter(|asked| *asked > 0);
        let seconds = asked
            .unwrap_or(self.expiration_seconds)
            .clamp(MIN_EXPIRATION_SECONDS, MAX_EXPIRATION_SECONDS);
        match jitter {
            Some(jitter) if seconds == MAX_EXPIRATION_SECONDS => {
                MAX_EXPIRATION_SECONDS - JITTER_SECONDS + jitter % (JITTER_SECONDS + 1)
            }
            _ => seconds,
        }
    }

    /// Returns the host of the container credentials endpoint, without brackets and port.
    pub(super) fn endpoint_host(&self) -> &str {
        let rest = self.full_uri.split_once("://").map_or("", |(_, rest)| rest);
        let authority = rest.split('/').next().unwrap_or_default();
        match authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => authority.split(':').next().unwrap_or_default(),
        }
    }
}
