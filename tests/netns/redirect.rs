//! The guarantees of the rules, tested for each backend.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rolegate_redirect::{Backend, Choice, State};
use rolegate_testkit::lab::PodLink;
use rolegate_testkit::repository;

use crate::harness::{
    AGENT, Client, DIRECT, IMDS, METADATA, PORT, RedirectHarness, fetch, for_each_backend, on,
};

for_each_backend!(
    pods_reach_the_agent_and_not_the_node_s_metadata,
    threat_16_every_interface_kind_is_redirected_or_refused,
    pain_03_a_connection_from_before_the_rules_is_cut,
    pain_03_without_an_agent_pods_are_refused,
    threat_21_a_service_with_a_metadata_address_gets_nothing,
    threat_21_a_service_that_leads_to_the_metadata_address_is_refused,
    threat_16_untracked_packets_are_refused,
    threat_03_a_borrowed_source_address_gets_nowhere,
    threat_15_the_agent_s_port_is_no_service,
    applying_twice_is_once_and_removing_leaves_nothing,
    the_commands_of_the_page_about_uninstalling_leave_nothing,
    routing_rules_refuse_what_is_forwarded_and_nothing_else,
    an_earlier_nftables_run_does_not_win,
);

fn pods_reach_the_agent_and_not_the_node_s_metadata(backend: Backend) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    let pod = harness.pod()?;
    for metadata in METADATA {
        assert_eq!(fetch(&pod, metadata)?, IMDS, "the lab is real");
    }
    harness.apply("eni+")?;
    let before = harness.imds.hits();
    for metadata in METADATA {
        assert_eq!(fetch(&pod, metadata)?, AGENT);
        assert_eq!(fetch(harness.lab.node(), metadata)?, IMDS, "the node's own");
    }
    assert_eq!(harness.imds.hits(), before + 2);
    Ok(())
}

fn threat_16_every_interface_kind_is_redirected_or_refused(backend: Backend) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    let pods = [
        harness
            .lab
            .pod("10.1.0.7", PodLink::VethNamed("vlan.eth.1"))?,
        harness.lab.pod("10.2.0.7", PodLink::Bridge)?,
        harness.lab.pod("10.3.0.7", PodLink::Macvlan)?,
    ];
    for pod in &pods {
        for metadata in METADATA {
            assert_eq!(fetch(pod, metadata)?, IMDS, "the lab is real");
        }
    }
    let before = harness.imds.hits();
    for pattern in ["eni+", "vlan+", "cni0", "mac0", "!eth0"] {
        let redirect = harness.apply(pattern)?;
        assert_eq!(on(harness.lab.node(), || redirect.state())?, State::InPlace);
        for pod in &pods {
            let meant = harness
                .redirect(pattern)
                .spec()
                .interface()
                .matches(&pod.interface);
            for metadata in METADATA {
                let answer = fetch(pod, metadata);
                let context = format!("{pattern} {} {metadata}", pod.interface);
                if meant {
                    assert_eq!(answer.expect(&context), AGENT, "{context}");
                } else {
                    answer.expect_err(&context);
                }
            }
        }
    }
    assert_eq!(harness.imds.hits(), before);
    Ok(())
}

fn pain_03_a_connection_from_before_the_rules_is_cut(backend: Backend) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    let pod = harness.pod()?;
    for metadata in METADATA {
        let mut client = Client::connect(&pod, None, metadata)?;
        assert_eq!(client.ask()?, IMDS);
        let redirect = harness.apply("eni+")?;
        let before = harness.imds.hits();
        assert!(client.ask().is_err());
        assert_eq!(harness.imds.hits(), before);
        on(harness.lab.node(), || redirect.remove())?;
    }
    Ok(())
}

fn pain_03_without_an_agent_pods_are_refused(backend: Backend) -> anyhow::Result<()> {
    let mut harness = RedirectHarness::new(backend)?;
    let pod = harness.pod()?;
    harness.apply("eni+")?;
    harness.agent = None;
    for metadata in METADATA {
        // A process that another test is starting holds all sockets until it executes its program.
        let refused = (0..100).any(|_| {
            let error = fetch(&pod, metadata).unwrap_err();
            thread::sleep(Duration::from_millis(10));
            error.kind() == std::io::ErrorKind::ConnectionRefused
        });
        assert!(refused, "{metadata}");
    }
    assert_eq!(harness.imds.hits(), 0);
    Ok(())
}

/// Rules as the service proxy creates them for `externalIPs`, in its tables and at its priority.
fn threat_21_a_service_with_a_metadata_address_gets_nothing(
    backend: Backend,
) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    let pod = harness.pod()?;
    let other = harness.lab.pod("10.1.0.6", PodLink::VethNamed("vlan6"))?;
    let thief = harness.lab.pod("10.1.0.66", PodLink::VethNamed("vlan66"))?;
    let stolen = crate::harness::StandIn::start(&thief, 99, "forged")?;
    if let Some(iptables) = harness.iptables() {
        for (program, metadata, to) in [
            (
                iptables.clone(),
                "169.254.169.254",
                format!("{}:99", thief.v4),
            ),
            (
                iptables.replace("iptables", "ip6tables"),
                "fd00:ec2::254",
                format!("[{}]:99", thief.v6),
            ),
        ] {
            let node = harness.lab.node();
            node.exec(&format!("{program} -t nat -N KUBE-SERVICES"))?;
            node.exec(&format!(
                "{program} -t nat -A KUBE-SERVICES -d {metadata} -p tcp --dport 80 -j DNAT --to-destination {to}"
            ))?;
            node.exec(&format!("{program} -t nat -A PREROUTING -j KUBE-SERVICES"))?;
        }
    } else {
        harness.nft(&format!(
            "table inet kube-proxy {{
               chain services {{
                 ip daddr 169.254.169.254 tcp dport 80 dnat ip to {}:99
                 ip6 daddr fd00:ec2::254 tcp dport 80 dnat ip6 to [{}]:99
               }}
               chain nat-prerouting {{
                 type nat hook prerouting priority dstnat
                 jump services
               }}
             }}
",
            thief.v4, thief.v6
        ))?;
    }
    for metadata in METADATA {
        assert_eq!(fetch(&pod, metadata)?, "forged", "the theft is real");
    }
    let foreign = harness.all_rules()?;
    let redirect = harness.apply("eni+")?;
    let before = stolen.hits();
    for metadata in METADATA {
        assert_eq!(fetch(&pod, metadata)?, AGENT);
        fetch(&other, metadata).unwrap_err();
    }
    assert_eq!(stolen.hits(), before);
    on(harness.lab.node(), || redirect.remove())?;
    let left = harness.all_rules()?;
    for line in foreign.lines() {
        assert!(left.contains(line), "{line} is gone");
    }
    Ok(())
}

/// A Service with its own address, whose endpoint is the metadata service.
fn threat_21_a_service_that_leads_to_the_metadata_address_is_refused(
    backend: Backend,
) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    let pod = harness.pod()?;
    let services = [
        SocketAddr::new([10, 96, 0, 9].into(), 80),
        SocketAddr::new([0xfd96_u16, 0, 0, 0, 0, 0, 0, 9].into(), 80),
    ];
    harness.nft(
        "table inet kube-proxy {
           chain nat-prerouting {
             type nat hook prerouting priority dstnat
             ip daddr 10.96.0.9 tcp dport 80 dnat ip to 169.254.169.254:80
             ip6 daddr fd96::9 tcp dport 80 dnat ip6 to [fd00:ec2::254]:80
           }
         }
",
    )?;
    for service in services {
        assert_eq!(fetch(&pod, service)?, IMDS, "the way is real");
    }
    harness.apply("eni+")?;
    let before = harness.imds.hits();
    for service in services {
        fetch(&pod, service).unwrap_err();
    }
    assert_eq!(harness.imds.hits(), before);
    Ok(())
}

fn threat_16_untracked_packets_are_refused(backend: Backend) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    let pod = harness.pod()?;
    harness.nft(
        "table inet untracked {
           chain prerouting {
             type filter hook prerouting priority raw
             ip daddr 169.254.169.254 notrack
             ip saddr 169.254.169.254 notrack
             ip6 daddr fd00:ec2::254 notrack
             ip6 saddr fd00:ec2::254 notrack
           }
         }
",
    )?;
    for metadata in METADATA {
        assert_eq!(fetch(&pod, metadata)?, IMDS, "the lab is real");
    }
    harness.apply("eni+")?;
    let before = harness.imds.hits();
    for metadata in METADATA {
        fetch(&pod, metadata).unwrap_err();
    }
    assert_eq!(harness.imds.hits(), before);
    Ok(())
}

fn threat_03_a_borrowed_source_address_gets_nowhere(backend: Backend) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    let (pod, thief) = (harness.pod()?, harness.lab.pod("10.1.0.66", PodLink::Veth)?);
    harness.apply("eni+")?;
    // Counts the packets that reach the agent's port after the rules that redirect them.
    harness.nft(&format!(
        "table inet seen {{
           chain input {{
             type filter hook input priority 100
             tcp dport {PORT} counter
           }}
         }}
"
    ))?;
    thief.exec(&format!("ip addr add {}/32 dev lo", pod.v4))?;
    thief.exec(&format!("ip addr add {}/128 dev lo nodad", pod.v6))?;
    let seen = |expected: bool| -> anyhow::Result<()> {
        let listing = harness.lab.node().exec("nft list table inet seen")?;
        assert_eq!(!listing.contains("packets 0"), expected, "{listing}");
        Ok(())
    };
    for (source, metadata) in [
        (IpAddr::from(pod.v4), METADATA[0]),
        (IpAddr::from(pod.v6), METADATA[1]),
    ] {
        assert!(Client::connect(&thief, Some(source), metadata).is_err());
        seen(false)?;
    }
    assert_eq!(
        fetch(&thief, METADATA[0])?,
        AGENT,
        "its own address is fine"
    );
    seen(true)
}

fn threat_15_the_agent_s_port_is_no_service(backend: Backend) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    let pod = harness.pod()?;
    for direct in DIRECT {
        assert_eq!(fetch(&pod, direct)?, AGENT, "the lab is real");
    }
    harness.apply("eni+")?;
    let agent = harness.agent.as_ref().unwrap();
    let before = agent.hits();
    for direct in DIRECT {
        fetch(&pod, direct).unwrap_err();
        fetch(harness.lab.imds(), direct).unwrap_err();
    }
    // A pod cannot reach the agent through a Service either: its packets are redirected, but their
    // destination was not a metadata address.
    harness.nft(&format!(
        "table inet service {{
           chain prerouting {{
             type nat hook prerouting priority dstnat
             ip daddr 10.96.0.9 tcp dport 80 dnat ip to {}
           }}
         }}
",
        DIRECT[0]
    ))?;
    fetch(&pod, "10.96.0.9:80".parse()?).unwrap_err();
    assert_eq!(agent.hits(), before);
    for direct in DIRECT {
        assert_eq!(fetch(harness.lab.node(), direct)?, AGENT, "local probes");
    }
    Ok(())
}

fn applying_twice_is_once_and_removing_leaves_nothing(backend: Backend) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    if let Some(iptables) = harness.iptables() {
        // The built-in chains remain once they were used.
        for program in [iptables.clone(), iptables.replace("iptables", "ip6tables")] {
            for table in [
                "filter -S FORWARD",
                "nat -S PREROUTING",
                "raw -S PREROUTING",
            ] {
                harness.lab.node().exec(&format!("{program} -t {table}"))?;
            }
        }
    }
    let empty = harness.all_rules()?;
    let redirect = harness.apply("!eth0")?;
    let once = harness.all_rules()?;
    on(harness.lab.node(), || redirect.apply())?;
    assert_eq!(harness.all_rules()?, once);
    assert_eq!(on(harness.lab.node(), || redirect.state())?, State::InPlace);
    let shown = on(harness.lab.node(), || backend.show())?.unwrap();
    assert!(shown.contains("rolegate: redirect to the agent"), "{shown}");
    on(harness.lab.node(), || redirect.remove())?;
    let ours = |rules: &str| rules.to_lowercase().matches("rolegate").count();
    assert_eq!(ours(&harness.all_rules()?), 0);
    assert!(ours(&once) > 0 && ours(&empty) == 0);
    assert_eq!(on(harness.lab.node(), || redirect.state())?, State::Missing);
    on(harness.lab.node(), || redirect.remove())?;
    Ok(())
}

/// Returns the commands in a page's fenced code blocks of the language `sh`.
fn blocks_of_commands(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().map(str::trim_start);
    while lines.any(|line| line == "```sh") {
        let block = lines.by_ref().take_while(|line| *line != "```");
        blocks.push(block.map(|line| format!("{line}\n")).collect());
    }
    blocks
}

fn the_commands_of_the_page_about_uninstalling_leave_nothing(
    backend: Backend,
) -> anyhow::Result<()> {
    let page = repository().join("docs/how-to/uninstall.md");
    let page = std::fs::read_to_string(page)?;
    let program = match backend {
        Backend::Iptables(_) => "iptables",
        _ => "nft delete",
    };
    let blocks = blocks_of_commands(&page);
    let of = |word: &str| {
        let block = blocks.iter().find(|block| block.contains(word));
        block
            .cloned()
            .with_context(|| format!("no command with {word}"))
    };
    let harness = RedirectHarness::new(backend)?;
    // The page says `iptables`, which can be one of several programs.
    let functions = harness.iptables().map(|iptables| {
        let other = iptables.replace("iptables", "ip6tables");
        format!("iptables() {{ {iptables} \"$@\"; }}\nip6tables() {{ {other} \"$@\"; }}\n")
    });
    let functions = functions.unwrap_or_default();
    let script = format!("set -e\n{functions}{}{}", of(program)?, of("ip rule")?);
    let redirect = harness.apply("eni+")?;
    let everything = || -> anyhow::Result<String> {
        let mut all = String::new();
        for command in [
            "nft list ruleset",
            "iptables-legacy-save",
            "ip6tables-legacy-save",
            "ip rule",
            "ip -6 rule",
        ] {
            all.push_str(&harness.lab.node().exec(command)?.to_lowercase());
        }
        Ok(all)
    };
    let is_ours = |line: &&str| {
        ["rolegate", "169.254.169.254", "fd00:ec2::254", "nop"]
            .iter()
            .any(|word| line.contains(word))
    };
    assert!(
        everything()?.lines().any(|line| is_ours(&line)),
        "nothing to take away"
    );
    let file = std::env::temp_dir().join(format!("{}.sh", harness.lab.node().name()));
    std::fs::write(&file, script)?;
    let done = harness.lab.node().exec(&format!("sh {}", file.display()));
    std::fs::remove_file(&file)?;
    done?;
    let left = everything()?;
    let left: Vec<_> = left.lines().filter(is_ours).collect();
    assert!(left.is_empty(), "{left:#?}");
    assert_eq!(on(harness.lab.node(), || redirect.state())?, State::Missing);
    Ok(())
}

/// The state after the rules of nftables and iptables are removed, whichever interface a packet
/// arrives on. Packets that the host itself sends follow its other routing rules.
fn routing_rules_refuse_what_is_forwarded_and_nothing_else(backend: Backend) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(backend)?;
    let node = harness.lab.node();
    let pods = [
        harness.pod()?,
        harness
            .lab
            .pod("10.1.0.7", PodLink::VethNamed("vlan.eth.1"))?,
        harness.lab.pod("10.2.0.7", PodLink::Bridge)?,
        harness.lab.pod("10.3.0.7", PodLink::Macvlan)?,
    ];
    // A network plugin that uses separate routing tables, before `main`, for pods and the host's
    // own traffic.
    for (family, metadata, gateway) in [
        ("-4", "169.254.169.254", "10.0.0.254"),
        ("-6", "fd00:ec2::254", "fd10::fe"),
    ] {
        for command in [
            format!("ip {family} route add {metadata} via {gateway} table 101"),
            format!(
                "ip {family} rule add priority 10 iif {} lookup 101",
                pods[1].interface
            ),
            format!("ip {family} rule add priority 512 iif lo lookup 101"),
            format!("ip {family} route add unreachable {metadata}"),
        ] {
            node.exec(&command)?;
        }
    }
    for metadata in METADATA {
        assert_eq!(fetch(&pods[1], metadata)?, IMDS, "the lab is real");
        assert_eq!(fetch(node, metadata)?, IMDS, "the lab is real");
    }
    let redirect = harness.apply("eni+")?;
    assert_eq!(fetch(&pods[0], METADATA[0])?, AGENT);
    harness.flush()?;
    assert_eq!(on(node, || redirect.state())?, State::Altered);
    let before = harness.imds.hits();
    for pod in &pods {
        for metadata in METADATA {
            fetch(pod, metadata).expect_err(&pod.interface);
        }
    }
    assert_eq!(harness.imds.hits(), before);
    for metadata in METADATA {
        assert_eq!(fetch(node, metadata)?, IMDS, "the host's own");
    }
    // These tables do not affect the redirect, and strict reverse-path filtering does not either.
    node.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    on(node, || redirect.apply())?;
    assert_eq!(on(node, || redirect.state())?, State::InPlace);
    for metadata in METADATA {
        assert_eq!(fetch(&pods[0], metadata)?, AGENT);
        assert_eq!(fetch(node, metadata)?, IMDS);
    }
    let rules = || Ok::<_, anyhow::Error>(node.exec("ip rule")? + &node.exec("ip -6 rule")?);
    assert_eq!(
        rules()?.matches("169.254.169.254").count(),
        2,
        "{}",
        rules()?
    );
    on(node, || redirect.remove())?;
    let left = rules()?;
    assert!(
        !left.contains("prohibit") && !left.contains("nop"),
        "{left}"
    );
    assert_eq!(left.matches("lookup 101").count(), 4, "{left}");
    Ok(())
}

fn an_earlier_nftables_run_does_not_win(backend: Backend) -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::Nftables)?;
    harness.apply("eni+")?;
    let harness = RedirectHarness { backend, ..harness };
    harness.apply("eni+")?;
    let tables = harness.lab.node().exec("nft list tables")?;
    assert_eq!(
        tables.contains("inet rolegate"),
        backend == Backend::Nftables
    );
    let removed = on(harness.lab.node(), rolegate_redirect::remove_all)?;
    assert_eq!(removed.backends.len(), 1, "{removed:?}");
    assert!(removed.routing_rules);
    assert!(!harness.all_rules()?.to_lowercase().contains("rolegate"));
    Ok(())
}

#[test]
fn auto_is_nftables_where_the_kernel_takes_it_and_asking_changes_nothing() -> anyhow::Result<()> {
    let harness = RedirectHarness::new(Backend::None)?;
    let before = harness.all_rules()?;
    let redirect = harness.redirect("eni+");
    let chosen = on(harness.lab.node(), || Choice::Auto.resolve(redirect.spec()))?;
    assert_eq!(chosen, Backend::Nftables);
    assert_eq!(harness.all_rules()?, before);
    Ok(())
}
