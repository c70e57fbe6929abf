//! kiam's flags, so that its manifests are read as they are: those that mean the same are aliases of
//! rolegate's, and these are the others. None is in the help: docs/from-kiam.md tells of them.

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
    /// What somebody who comes from kiam should know of the flags given.
    pub(crate) fn notes(&self) -> Vec<&'static str> {
        let mut notes = Vec::new();
        if self.allow_route_regexp.is_some() {
            notes.push(
                "--allow-route-regexp is not followed: pods may read the harmless metadata paths; open \
                 more with --metadata-allow",
            );
        }
        if self.allow_ip_query {
            notes.push(
                "--allow-ip-query is not followed: a pod is known by the address it asks from",
            );
        }
        notes
    }

    /// # Errors
    /// A flag that can't be taken as it is, with what to write instead.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match self.server_address {
            Some(_) => Err(invalid(
                "--server-address: write --broker=https://HOST:PORT; this agent proves its node by the token of \
                 its service account or by a certificate that names the node, and not by kiam's (docs/from-kiam.md)",
            )),
            None => Ok(()),
        }
    }
}

/// Flags of kiam's server that have no meaning here.
#[derive(Debug, Default, Args)]
pub(crate) struct KiamServerFlags {
    /// The Region of STS.
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
    /// What somebody who comes from kiam should know of the flags given.
    pub(crate) fn notes(&self) -> Vec<&'static str> {
        let mut notes = Vec::new();
        if self.session.is_some() {
            notes.push("--session is not followed: sessions are named after their pods' workloads");
        }
        if self.disable_strict_namespace_regexp {
            notes.push(
                "--disable-strict-namespace-regexp is not followed: iam.amazonaws.com/permitted is matched \
                 from start to end; write .* where more is meant",
            );
        }
        notes
    }
}

/// Flags of both that have no meaning here.
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
