//! The default names of rolegate's own objects in a cluster. Flags can set all of them.

/// The namespace.
pub const NAMESPACE: &str = "rolegate-system";
/// The agents' DaemonSet and service account.
pub const AGENT: &str = "rolegate-agent";
/// The brokers' Deployment, Service and service account.
pub const BROKER: &str = "rolegate-broker";
/// The Secret with the brokers' certificate.
pub const BROKER_TLS: &str = "rolegate-broker-tls";
/// The ConfigMap that publishes the authorities of the brokers' certificate.
pub const BROKER_CA: &str = "rolegate-broker-ca";
/// The webhook's Deployment, Service and service account.
pub const ADMISSION: &str = "rolegate-admission";
/// The Secret with the webhook's certificate.
pub const ADMISSION_TLS: &str = "rolegate-admission-tls";
/// The ValidatingWebhookConfiguration.
pub const WEBHOOK: &str = "rolegate";
/// The controller's Deployment, Lease and field manager.
pub const CONTROLLER: &str = "rolegate-controller";
