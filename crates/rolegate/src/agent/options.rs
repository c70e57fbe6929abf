//! Validation of the agent's flags, and their conversion into the agent's options.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use http::Uri;
use jiff::SignedDuration;
use rolegate_agent::app::{AgentOptions, Mode, RedirectOptions, SourceOptions, StandaloneOptions};
use rolegate_agent::attachment::{AttachmentOptions, EVENT_BUFFER, Unrecorded};
use rolegate_agent::broker::{BrokerOptions, ClientAuth};
use rolegate_agent::container_credentials::{
    CONTAINER_CREDENTIALS_V4, CONTAINER_CREDENTIALS_V6, ContainerCredentialsOptions, MAX_ADDRESSES,
};
use rolegate_agent::limits::LimitOptions;
use rolegate_agent::metadata::{self, MetadataOptions};
use rolegate_core::engine::EngineOptions;
use rolegate_core::metadata::AllowList;
use rolegate_core::service_account::{
    CONTAINER_CREDENTIALS_AUDIENCE, MAX_AUDIENCE, WEB_IDENTITY_AUDIENCE,
};
use rolegate_redirect::check::NETNS_DIR;
use rolegate_redirect::rules::{Endpoint, METADATA_V4, METADATA_V6};
use rolegate_redirect::{Backend, Choice};
use rolegate_runtime::clock::Clock;
use rolegate_runtime::tls::TlsFiles;

use super::flags::{AgentFlags, ImdsV2, UnrecordedAddresses};
use crate::flags::deciding::DecidingFlags;
use crate::flags::{MIN_STALENESS, check_max_staleness, invalid, session_duration_seconds};
use crate::redirect::{Interface, choice, interface, spec};

/// Default address of metrics, which pods cannot reach.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// Maximum value of `--wait`. SDKs have timed out by then.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Maximum time to wait for a CNI configuration: less than the liveness probe of our manifests allows.
const MAX_DETECT_TIME: Duration = Duration::from_secs(45);
const MAX_DRAIN_TIME: Duration = Duration::from_secs(300);
/// Maximum number of tokens of one client that are verified per second. A CSI driver requests one for
/// each mount.
const VERIFICATIONS_PER_POD: u32 = 100;
/// Maximum number of tokens that are verified per second, which takes a tenth of a processor.
const VERIFICATIONS_IN_ALL: u32 = 2000;

/// Returns notes about the given flags for users of kube2iam.
pub(super) fn notes(flags: &AgentFlags) -> Vec<&'static str> {
    let mut notes = Vec::new();
    if flags.auto_discover_default_role {
        notes.push(
            "--auto-discover-default-role is ignored: it would give the node's role to every \
             pod that requests no role; use --default-role",
        );
    }
    if flags.kubernetes.insecure {
        notes.push("--insecure: the API server's certificate is not verified");
    }
    if flags.redirect_remove_at_exit {
        notes.push(
            "--redirect-remove-at-exit: pods will reach the node's role after this agent exits",
        );
    }
    if matches!(flags.unrecorded_addresses, UnrecordedAddresses::Learn) {
        notes.push(
            "--unrecorded-addresses=learn: on a bridge a pod with NET_RAW can take the role of a \
             neighbour that the container runtime has not recorded",
        );
    }
    notes.extend(flags.kiam.notes());
    notes
}

/// Validates all flags, individually and together.
pub(crate) async fn options(flags: AgentFlags) -> anyhow::Result<AgentOptions> {
    let clock = Clock::system();
    flags.kiam.check()?;
    let admin_listen = admin(&flags)?;
    // Validated with a broker too: an invalid flag is an error in every mode.
    let alone = alone(&flags, &clock)?;
    let mode = match broker(&flags, &clock)? {
        Some(broker) => Mode::Brokered(broker),
        None => Mode::Standalone(Box::new(alone)),
    };
    let wait = bounded(
        "--wait",
        flags.backoff_max_elapsed_time.unwrap_or(flags.wait),
        MAX_WAIT,
    )?;
    bounded("--drain-time", flags.drain_time, MAX_DRAIN_TIME)?;
    if flags.redirect_interval < Duration::from_millis(100) {
        return Err(invalid("--redirect-interval: must be at least 100ms"));
    }
    check_max_staleness(flags.max_staleness)?;
    if flags.max_connections_per_pod == 0
        || flags.max_forwards_per_pod == 0
        || flags.max_forwards == 0
    {
        return Err(invalid(
            "--max-connections-per-pod, --max-forwards-per-pod and --max-forwards: must be at least 1",
        ));
    }
    let allow = AllowList::new(&flags.metadata_allow)
        .map_err(|error| invalid(format!("--metadata-allow: {error}")))?;
    let container_credentials = container_credentials(&flags, admin_listen)?;
    // Last, since it may wait for the network plugin.
    let redirect = redirect(&flags, container_credentials.as_ref()).await?;
    Ok(AgentOptions {
        listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), flags.app_port),
        admin_listen,
        runtime_dir: present(&flags.runtime_dir),
        host_ip: flags.host_ip,
        debug: flags.debug,
        kube2iam_metrics: flags.kube2iam_metrics,
        mode,
        metadata_addr: flags.metadata_addr,
        metadata: MetadataOptions {
            imds_v2: match flags.imds_v2 {
                ImdsV2::Optional => metadata::ImdsV2::Optional,
                ImdsV2::Required => metadata::ImdsV2::Required,
            },
            allow,
            limits: LimitOptions {
                connections: flags.max_connections.get(),
                connections_per_pod: flags.max_connections_per_pod,
                forwards_per_second: flags.max_forwards_per_pod,
                forwards_in_all: flags.max_forwards,
                ..LimitOptions::default()
            },
            header_time: Duration::from_secs(10),
        },
        container_credentials,
        max_staleness: flags.max_staleness,
        wait,
        redirect,
        clock,
    })
}

/// Returns the options of the container credentials endpoint, if it is enabled.
fn container_credentials(
    flags: &AgentFlags,
    admin: SocketAddr,
) -> anyhow::Result<Option<ContainerCredentialsOptions>> {
    if !flags.container_credentials {
        return Ok(None);
    }
    let node = flags.node.as_deref().filter(|node| !node.is_empty());
    let node = node.ok_or_else(|| {
        invalid(
            "--container-credentials: requires --node or NODE_NAME, with which tokens are compared",
        )
    })?;
    let port = flags.container_credentials_port.unwrap_or(80);
    if port != 0 && (port == flags.app_port || port == admin.port()) {
        return Err(invalid(
            "--container-credentials-port: must differ from --app-port and the metrics port",
        ));
    }
    let mut addresses = flags.container_credentials_address.clone();
    if addresses.is_empty() {
        addresses = vec![
            CONTAINER_CREDENTIALS_V4.into(),
            CONTAINER_CREDENTIALS_V6.into(),
        ];
    }
    if let Some(wrong) = addresses.iter().find(|ip| !is_endpoint_address(**ip)) {
        return Err(invalid(format!(
            "--container-credentials-address: {wrong} cannot be the address of an endpoint: use a \
             unicast address of the endpoint alone, such as 169.254.170.23"
        )));
    }
    let repeated = addresses
        .iter()
        .enumerate()
        .any(|(place, ip)| addresses.iter().take(place).any(|other| other == ip));
    if addresses.len() > MAX_ADDRESSES || repeated {
        return Err(invalid(format!(
            "--container-credentials-address: give at most {MAX_ADDRESSES} addresses, each once"
        )));
    }
    let audience = flags.container_credentials_audience.as_deref();
    let audience = audience.unwrap_or(CONTAINER_CREDENTIALS_AUDIENCE);
    if !(1..=MAX_AUDIENCE).contains(&audience.len())
        || !audience.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(invalid(
            "--container-credentials-audience: must have 1 to 253 visible ASCII characters",
        ));
    }
    if audience == WEB_IDENTITY_AUDIENCE {
        return Err(invalid(
            "--container-credentials-audience: tokens for sts.amazonaws.com are valid at STS itself: \
             use another audience",
        ));
    }
    Ok(Some(ContainerCredentialsOptions {
        listen: addresses
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect(),
        audience: audience.into(),
        node: node.into(),
        limits: LimitOptions {
            connections: flags.max_connections.get(),
            connections_per_pod: flags.max_connections_per_pod,
            forwards_per_second: VERIFICATIONS_PER_POD,
            forwards_in_all: VERIFICATIONS_IN_ALL,
            ..LimitOptions::default()
        },
        header_time: Duration::from_secs(10),
    }))
}

/// Returns whether the agent may own an address. The metadata address must reach the redirect.
fn is_endpoint_address(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    let is_mapped = ip.to_canonical() != ip;
    let is_metadata = ip == METADATA_V4 || ip == METADATA_V6;
    !(ip.is_unspecified() || ip.is_multicast() || is_broadcast || is_mapped || is_metadata)
}

/// Returns the options of a standalone agent.
fn alone(flags: &AgentFlags, clock: &Clock) -> anyhow::Result<StandaloneOptions> {
    let mut engine = flags.sts.engine(EngineOptions::for_node);
    if let Some(ttl) = flags.iam_role_error_ttl {
        let ttl = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::MAX);
        engine.final_retry = engine.final_retry.max(ttl);
    }
    let decisions =
        flags
            .deciding()?
            .options(&flags.given, flags.auto_discover_base_arn, engine)?;
    Ok(StandaloneOptions {
        source: match &flags.workloads {
            Some(path) => SourceOptions::File(path.clone()),
            None => SourceOptions::Kubernetes {
                client: flags.kubernetes.client(),
                node: flags.node.clone().filter(|node| !node.is_empty()),
            },
        },
        decisions,
        sts: flags.sts.options(clock.clone())?,
    })
}

impl AgentFlags {
    /// Returns the flags that affect decisions, for an agent without a broker.
    ///
    /// # Errors
    /// Returns a usage error for a session duration that STS does not support.
    pub(crate) fn deciding(&self) -> anyhow::Result<DecidingFlags> {
        Ok(DecidingFlags {
            rules: self.rules.clone(),
            keys: self.keys.clone(),
            scope: self.session_scope.into(),
            session_seconds: session_seconds(self)?,
        })
    }
}

/// Returns the broker's address and credentials, if there is a broker.
fn broker(flags: &AgentFlags, clock: &Clock) -> anyhow::Result<Option<BrokerOptions>> {
    let Some(url) = &flags.broker else {
        return Ok(None);
    };
    let shape = || {
        invalid(
            "--broker: write https://HOST:PORT, such as https://rolegate-broker.rolegate-system.svc:9443",
        )
    };
    let uri: Uri = url.parse().map_err(|_| shape())?;
    let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
    let (Some("https"), true, Some(host), Some(port)) =
        (uri.scheme_str(), bare, uri.host(), uri.port_u16())
    else {
        return Err(shape());
    };
    let node = flags.node.clone().filter(|node| !node.is_empty());
    let node = node.ok_or_else(|| invalid("--broker: requires --node or NODE_NAME"))?;
    let proof = match (&flags.broker_cert, &flags.broker_key) {
        (Some(certificate), Some(key)) => ClientAuth::Certificate(TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
        }),
        _ => ClientAuth::Token(flags.broker_token.clone()),
    };
    Ok(Some(BrokerOptions {
        // Only URLs put brackets around IPv6 addresses.
        host: host.trim_matches(['[', ']']).to_owned(),
        port,
        ca: flags.broker_ca.clone(),
        proof,
        node,
        stale: MIN_STALENESS,
        clock: clock.clone(),
    }))
}

fn bounded(flag: &str, given: Duration, most: Duration) -> anyhow::Result<Duration> {
    if given > most {
        return Err(invalid(format!("{flag}: must be at most {most:?}")));
    }
    Ok(given)
}

fn present(path: &Path) -> Option<std::path::PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

fn admin(flags: &AgentFlags) -> anyhow::Result<SocketAddr> {
    let address = match (flags.metrics_address, flags.metrics_port) {
        (Some(address), _) => address,
        (None, Some(port)) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
        (None, None) => METRICS,
    };
    if address.port() != 0 && address.port() == flags.app_port {
        return Err(invalid(
            "--metrics-port: must differ from --app-port; the port that pods reach serves only what \
             pods need",
        ));
    }
    Ok(address)
}

fn session_seconds(flags: &AgentFlags) -> anyhow::Result<u32> {
    let (flag, lifetime) = match (flags.session_duration, flags.iam_role_session_ttl) {
        (Some(lifetime), _) => ("--session-duration", lifetime),
        // kube2iam requests twice its TTL from STS.
        (None, Some(ttl)) => (
            "--iam-role-session-ttl (half of the duration requested from STS)",
            ttl * 2,
        ),
        (None, None) => return Ok(3600),
    };
    session_duration_seconds(flag, lifetime)
}

async fn redirect(
    flags: &AgentFlags,
    endpoint: Option<&ContainerCredentialsOptions>,
) -> anyhow::Result<Option<RedirectOptions>> {
    let text = match (&flags.redirect, flags.iptables) {
        (Some(_), true) => {
            return Err(invalid(
                "--iptables means --redirect=auto: give only one of them",
            ));
        }
        (Some(text), false) => text.as_str(),
        (None, true) => "auto",
        (None, false) => return Ok(None),
    };
    let choice = choice(text)?;
    if choice == Choice::Fixed(Backend::None) {
        return Ok(None);
    }
    let netns_dir = present(&flags.redirect_check_dir).unwrap_or_else(|| NETNS_DIR.into());
    let interface = interface(
        &flags.host_interface,
        flags.cni_conf_dir.clone(),
        netns_dir.clone(),
    )?;
    let interface = match interface {
        Interface::Fixed(pattern) => pattern,
        Interface::Detect(detector) => {
            let found = detector.wait(MAX_DETECT_TIME).await?;
            tracing::info!(
                host_interface = %found.interface,
                source = found.source,
                "found the interface of pods"
            );
            found.interface
        }
    };
    let attachments = AttachmentOptions {
        interface: Some(interface.clone()),
        results_dir: present(&flags.cni_results_dir),
        results_owner: 0,
        netns_dir,
        unrecorded: match flags.unrecorded_addresses {
            UnrecordedAddresses::Refuse => Unrecorded::Refuse,
            UnrecordedAddresses::Learn => Unrecorded::Learn,
        },
        event_buffer: EVENT_BUFFER,
    };
    let mut spec = spec(flags.host_ip, flags.host_ipv6, flags.app_port, interface)?;
    if let Some(endpoint) = endpoint {
        let addresses = endpoint.listen.iter().map(SocketAddr::ip);
        spec = spec.with_endpoint(Endpoint {
            addresses: addresses.filter(|ip| !ip.is_loopback()).collect(),
            port: flags.container_credentials_port.unwrap_or(80),
        });
    }
    Ok(Some(RedirectOptions {
        backend: choice.resolve(&spec).await?,
        spec,
        interval: flags.redirect_interval,
        remove_at_exit: flags.redirect_remove_at_exit,
        attachments,
        check_dir: present(&flags.redirect_check_dir),
    }))
}
