//! The agent's flags, validated and turned into what the agent is started with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use http::Uri;
use jiff::SignedDuration;
use rolegate_agent::app::{
    AgentOptions, AloneOptions, MindOptions, RedirectOptions, SourceOptions,
};
use rolegate_agent::attachment::{AttachmentOptions, EVENT_BUFFER, Unrecorded};
use rolegate_agent::broker::{BrokerOptions, Proof};
use rolegate_agent::door::{self, DoorOptions};
use rolegate_agent::limits::LimitOptions;
use rolegate_agent::redirect::check::NETNS_DIR;
use rolegate_agent::redirect::{Backend, Choice};
use rolegate_core::engine::EngineOptions;
use rolegate_core::metadata::AllowList;
use rolegate_core::redirect::InterfacePattern;
use rolegate_runtime::clock::Clock;
use rolegate_runtime::tls::TlsFiles;

use super::flags::{AgentFlags, ImdsV2, UnrecordedAddresses};
use crate::deciding_flags::DecidingFlags;
use crate::flags::{MIN_PICTURE_AGE, check_picture_age, invalid, session_life};
use crate::redirect::{choice, spec};

/// Where metrics are by default: not where pods reach them.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// Longest wait of a request: SDKs are gone by then.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_DRAIN: Duration = Duration::from_secs(300);

/// What a user of kube2iam should know of the flags given.
pub(super) fn notes(flags: &AgentFlags) -> Vec<&'static str> {
    let mut notes = Vec::new();
    if flags.auto_discover_default_role {
        notes.push(
            "--auto-discover-default-role is not followed: it would give the node's role to every \
             pod that names none; name a role with --default-role",
        );
    }
    if flags.kubernetes.insecure {
        notes.push("--insecure: the API server's certificate is not checked");
    }
    if flags.redirect_remove_at_exit {
        notes.push("--redirect-remove-at-exit: pods will reach the node's role when this ends");
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

/// Validates all flags, alone and together.
pub(crate) async fn options(flags: AgentFlags) -> anyhow::Result<AgentOptions> {
    let clock = Clock::system();
    flags.kiam.check()?;
    let redirect = redirect(&flags).await?;
    let admin_listen = admin(&flags)?;
    // Validated with a broker too: a wrong flag is wrong wherever it is given.
    let alone = alone(&flags, &clock)?;
    let mind = match broker(&flags, &clock)? {
        Some(broker) => MindOptions::Brokered(broker),
        None => MindOptions::Alone(Box::new(alone)),
    };
    let wait = bounded(
        "--wait",
        flags.backoff_max_elapsed_time.unwrap_or(flags.wait),
        LONGEST_WAIT,
    )?;
    bounded("--drain-time", flags.drain_time, LONGEST_DRAIN)?;
    if flags.redirect_interval < Duration::from_millis(100) {
        return Err(invalid("--redirect-interval: give 100ms or more"));
    }
    check_picture_age(flags.max_picture_age)?;
    if flags.max_connections_per_pod == 0
        || flags.max_forwards_per_pod == 0
        || flags.max_forwards == 0
    {
        return Err(invalid(
            "--max-connections-per-pod, --max-forwards-per-pod and --max-forwards: give 1 or more",
        ));
    }
    let allow = AllowList::new(&flags.metadata_allow)
        .map_err(|error| invalid(format!("--metadata-allow: {error}")))?;
    Ok(AgentOptions {
        listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), flags.app_port),
        admin_listen,
        runtime_dir: present(&flags.runtime_dir),
        host_ip: flags.host_ip,
        debug: flags.debug,
        kube2iam_metrics: flags.kube2iam_metrics,
        mind,
        metadata_addr: flags.metadata_addr,
        door: DoorOptions {
            imds_v2: match flags.imds_v2 {
                ImdsV2::Optional => door::ImdsV2::Optional,
                ImdsV2::Required => door::ImdsV2::Required,
            },
            allow,
            wait,
            max_picture_age: flags.max_picture_age,
            limits: LimitOptions {
                connections: flags.max_connections.get(),
                connections_per_pod: flags.max_connections_per_pod,
                forwards_per_second: flags.max_forwards_per_pod,
                forwards_in_all: flags.max_forwards,
                ..LimitOptions::default()
            },
            header_time: Duration::from_secs(10),
        },
        redirect,
        clock,
    })
}

/// What an agent needs that decides by itself.
fn alone(flags: &AgentFlags, clock: &Clock) -> anyhow::Result<AloneOptions> {
    let rules = flags.rules.config()?;
    if flags.auto_discover_base_arn && rules.base.is_some() {
        return Err(invalid(
            "--auto-discover-base-arn and --base-role-arn: give one of both",
        ));
    }
    let mut engine = flags.sts.engine(EngineOptions::of_node);
    if let Some(ttl) = flags.iam_role_error_ttl {
        let ttl = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::MAX);
        engine.final_retry = engine.final_retry.max(ttl);
    }
    Ok(AloneOptions {
        source: match &flags.workloads {
            Some(path) => SourceOptions::File(path.clone()),
            None => SourceOptions::Kubernetes {
                client: flags.kubernetes.client(),
                node: flags.node.clone().filter(|node| !node.is_empty()),
            },
        },
        annotations: flags.keys.keys()?,
        sts: flags.sts.options(clock.clone())?,
        base_required: flags.auto_discover_base_arn,
        rules,
        given: flags.given.rules().clone(),
        cluster_config: flags.rules.cluster_config.into(),
        scope: flags.session_scope.into(),
        session_seconds: session_seconds(flags)?,
        engine,
    })
}

impl AgentFlags {
    /// The flags by which it decides, where no broker does.
    ///
    /// # Errors
    /// A session's life that STS does not give, as wrong usage.
    pub(crate) fn deciding(&self) -> anyhow::Result<DecidingFlags> {
        Ok(DecidingFlags {
            rules: self.rules.clone(),
            keys: self.keys.clone(),
            scope: self.session_scope.into(),
            session_seconds: session_seconds(self)?,
        })
    }
}

/// The broker and how it is reached, if there is one.
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
    let node = node.ok_or_else(|| invalid("--broker: give --node or NODE_NAME too"))?;
    let proof = match (&flags.broker_cert, &flags.broker_key) {
        (Some(certificate), Some(key)) => Proof::Certificate(TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
        }),
        _ => Proof::Token(flags.broker_token.clone()),
    };
    Ok(Some(BrokerOptions {
        // An IPv6 address stands in brackets in URLs alone.
        host: host.trim_matches(['[', ']']).to_owned(),
        port,
        ca: flags.broker_ca.clone(),
        proof,
        node,
        stale: MIN_PICTURE_AGE,
        clock: clock.clone(),
    }))
}

fn bounded(flag: &str, given: Duration, most: Duration) -> anyhow::Result<Duration> {
    if given > most {
        return Err(invalid(format!("{flag}: give {most:?} or less")));
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
            "--metrics-port: give another port than --app-port; what pods reach serves only what \
             pods need",
        ));
    }
    Ok(address)
}

fn session_seconds(flags: &AgentFlags) -> anyhow::Result<u32> {
    let (flag, life) = match (flags.session_duration, flags.iam_role_session_ttl) {
        (Some(life), _) => ("--session-duration", life),
        // kube2iam asks STS for twice its TTL.
        (None, Some(ttl)) => (
            "--iam-role-session-ttl (STS is asked for twice of it)",
            ttl * 2,
        ),
        (None, None) => return Ok(3600),
    };
    session_life(flag, life)
}

async fn redirect(flags: &AgentFlags) -> anyhow::Result<Option<RedirectOptions>> {
    let text = match (&flags.redirect, flags.iptables) {
        (Some(_), true) => {
            return Err(invalid(
                "--iptables means --redirect=auto: give one of both",
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
    let interface: InterfacePattern = flags
        .host_interface
        .parse()
        .map_err(|error| invalid(format!("--host-interface: {error}")))?;
    let attachments = AttachmentOptions {
        interface: Some(interface.clone()),
        results_dir: present(&flags.cni_results_dir),
        results_owner: 0,
        netns_dir: present(&flags.redirect_check_dir).unwrap_or_else(|| NETNS_DIR.into()),
        unrecorded: match flags.unrecorded_addresses {
            UnrecordedAddresses::Refuse => Unrecorded::Refuse,
            UnrecordedAddresses::Learn => Unrecorded::Learn,
        },
        event_buffer: EVENT_BUFFER,
    };
    let spec = spec(flags.host_ip, flags.host_ipv6, flags.app_port, interface)?;
    Ok(Some(RedirectOptions {
        backend: choice.resolve(&spec).await?,
        spec,
        interval: flags.redirect_interval,
        remove_at_exit: flags.redirect_remove_at_exit,
        attachments,
        check_dir: present(&flags.redirect_check_dir),
    }))
}
