//! kiam's flags, accepted so that its manifests work unchanged. Flags with the same meaning are
//! aliases of rolegate's own; the others are here. The help shows none of them; docs/from-kiam.md
//! describes them.

use clap::Args;

use crate::flags::invalid;

/// Flags of kiam's agent that have another meaning here, or none.
#[derive(Debug, Default, Args)]
pub(crate) struct KiamAgentFlags {
    #[arg(long, alias = "whitelist-route-regexp", hide = true)]
    allow_route_regexp: Option<String>,
    #[arg(long, hide = true)]
    allow_ip_query: bool,
    #[arg(long, hide = true)]
    server_address: Option<String>,
    #[arg(long, hide = true)]
    server_address_refresh: Option<String>,
    #[arg(long, hide = true)]
    gateway_timeout_creation: Option<String>,
    #[arg(long, hide = true)]
    no_iptables_remove: bool,
    #[command(flatten)]
    both: KiamFlags,
}

impl KiamAgentFlags {
    /// Returns notes about the given flags for users who migrate from kiam.
    pub(crate) fn notes(&self) -> Vec<&'static str> {
        let mut notes = Vec::new();
        if self.allow_route_regexp.is_some() {
            notes.push(
                "--allow-route-regexp is ignored: pods may read the harmless metadata paths; allow \
                 more with --metadata-allow",
            );
        }
        if self.allow_ip_query {
            notes.push("--allow-ip-query is ignored: a pod is identified by its source address");
        }
        notes
    }

    /// # Errors
    /// Returns the replacement for a flag that cannot be accepted.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match self.server_address {
            Some(_) => Err(invalid(
                "--server-address: write --broker=https://HOST:PORT; this agent authenticates its node with the token of \
                 its service account or with a certificate that names the node, not with kiam's certificate (docs/from-kiam.md)",
            )),
            None => Ok(()),
        }
    }
}

/// Flags of kiam's server that have no meaning here.
#[derive(Debug, Default, Args)]
pub(crate) struct KiamServerFlags {
    /// The AWS Region of STS.
    #[arg(long, hide = true)]
    pub(crate) region: Option<String>,
    #[arg(long, hide = true)]
    session: Option<String>,
    #[arg(long, hide = true)]
    session_refresh: Option<String>,
    #[arg(long, hide = true)]
    prefetch_buffer_size: Option<String>,
    #[arg(long, hide = true)]
    sync: Option<String>,
    #[arg(long, hide = true)]
    disable_strict_namespace_regexp: bool,
    #[arg(long, hide = true)]
    grpc_max_connection_idle_duration: Option<String>,
    #[arg(long, hide = true)]
    grpc_max_connection_age_duration: Option<String>,
    #[arg(long, hide = true)]
    grpc_max_connection_age_grace_duration: Option<String>,
    #[command(flatten)]
    both: KiamFlags,
}

impl KiamServerFlags {
    /// Returns notes about the given flags for users who migrate from kiam.
    pub(crate) fn notes(&self) -> Vec<&'static str> {
        let mut notes = Vec::new();
        if self.session.is_some() {
            notes.push("--session is ignored: sessions are named after their pods' workloads");
        }
        if self.disable_strict_namespace_regexp {
            notes.push(
                "--disable-strict-namespace-regexp is ignored: iam.amazonaws.com/permitted is matched \
                 from start to end; write .* to match more",
            );
        }
        notes
    }
}

/// Flags of kiam's agent and server that have no meaning here.
#[derive(Debug, Default, Args)]
struct KiamFlags {
    #[arg(long, hide = true)]
    grpc_keepalive_time_duration: Option<String>,
    #[arg(long, hide = true)]
    grpc_keepalive_timeout_duration: Option<String>,
    #[arg(long, hide = true)]
    grpc_keepalive_permit_without_stream: bool,
    #[arg(long, hide = true)]
    prometheus_sync_interval: Option<String>,
    #[arg(long, hide = true)]
    pprof_listen_addr: Option<String>,
    #[arg(long, hide = true)]
    statsd: Option<String>,
    #[arg(long, hide = true)]
    statsd_prefix: Option<String>,
    #[arg(long, hide = true)]
    statsd_interval: Option<String>,
}
