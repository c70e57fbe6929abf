//! The redirect without an agent, and the `rolegate redirect` command.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, ensure};
use rolegate_devkit::NODE_SECRET_MARKER;
use rolegate_testkit::lab::{Lab, PodLink, in_netns};
use rolegate_testkit::{Cluster, eventually};

use crate::ask::{self, METADATA, METADATA_6, Reply};
use crate::fixture::{AgentFixture, DEADLINE, clean, rolegate, start_imds};

/// The exit code of `redirect check` if pods get no response.
const BLOCKED: i32 = 2;

/// Returns true for a response of the agent, which knows no pod in this test.
fn is_agent(reply: &Reply) -> bool {
    reply.status == 404 && reply.body.contains("no pod on this node is known")
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_07_redirect_stays_when_the_agent_stops() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let fixture = AgentFixture::new("stays", cluster).await?;
    let pod = fixture.pod("10.1.0.5")?;
    let mut agent = fixture.ready_agent(&[]).await?;
    assert!(agent.stop().await?.success());
    for target in [METADATA, METADATA_6] {
        let answer = ask::get_at(&pod, target, "/latest/user-data");
        assert!(answer.is_err(), "{answer:?}");
    }
    assert!(!fixture.reached("user-data"));
    let netns = pod.path().display().to_string();
    let check = rolegate(
        fixture.lab.node(),
        &["redirect", "check", "--netns", &netns],
    )?;
    assert_eq!(check.status.code(), Some(BLOCKED), "{check:?}");

    // A killed agent leaves the same state, and the next agent continues from it.
    let mut agent = fixture.ready_agent(&[]).await?;
    agent.kill();
    assert!(ask::get(&pod, "/latest/user-data").is_err() && !fixture.reached("user-data"));
    let _agent = fixture.ready_agent(&[]).await?;
    assert!(is_agent(&ask::get(&pod, "/latest/user-data")?));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pain_04_redirect_remove_at_exit_opens_it() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let fixture = AgentFixture::new("opens", cluster).await?;
    let pod = fixture.pod("10.1.0.5")?;
    let mut agent = fixture.ready_agent(&["--redirect-remove-at-exit"]).await?;
    assert!(is_agent(&ask::get(&pod, "/latest/user-data")?));
    assert!(
        agent.log().contains("--redirect-remove-at-exit"),
        "a choice that is logged"
    );
    assert!(agent.stop().await?.success());
    for target in [METADATA, METADATA_6] {
        let open = ask::get_at(&pod, target, "/latest/user-data")?;
        assert!(open.body.contains(NODE_SECRET_MARKER), "{open:?}");
    }
    let netns = pod.path().display().to_string();
    let check = rolegate(
        fixture.lab.node(),
        &["redirect", "check", "--netns", &netns],
    )?;
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_by_hand() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let _imds = start_imds(&lab).await?;
    let pod = lab.pod("10.1.0.5", PodLink::Veth)?;
    let netns = pod.path().display().to_string();
    let run = |arguments: &[&str]| -> anyhow::Result<(Option<i32>, String)> {
        let words: Vec<&str> = ["redirect"].iter().chain(arguments).copied().collect();
        let output = rolegate(lab.node(), &words)?;
        let text = String::from_utf8([output.stdout, output.stderr].concat())?;
        Ok((output.status.code(), text))
    };
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        let (code, shown) = run(&["show"])?;
        assert!(code == Some(0) && shown.contains("no rules"), "{shown}");
        let (code, text) = run(&["check", "--netns", &netns])?;
        assert!(code == Some(1), "{backend}: {code:?} {text}");

        let apply = [
            "apply",
            "--backend",
            backend,
            "--host-interface=eni+",
            "--host-ip=10.0.0.1",
            "--host-ipv6=fd10::1",
        ];
        for _ in 0..2 {
            let (code, text) = run(&apply)?;
            assert!(code == Some(0) && text.contains(backend), "{text}");
        }
        let (code, shown) = run(&["show"])?;
        assert!(
            code == Some(0) && shown.contains("169.254.169.254"),
            "{shown}"
        );
        assert!(
            shown.contains("2: from all to fd00:ec2::254 prohibit"),
            "{shown}"
        );
        let (code, json) = run(&["check", "--netns", &netns, "-o", "json"])?;
        let json: serde_json::Value = serde_json::from_str(&json)?;
        // No agent is running.
        assert_eq!(code, Some(BLOCKED), "{json}");
        assert_eq!(json["state"], "blocked");
        assert_eq!(json["v4"]["state"], "blocked");
        // iptables is one of the other two backends, and its rules are printed once.
        assert_eq!(shown.matches("10.0.0.1:8181").count(), 1, "{shown}");
        assert_eq!(json["routingRules"], "inPlace");

        let (code, text) = run(&["remove"])?;
        assert!(code == Some(0) && text.contains("removed ("), "{text}");
        assert!(text.contains("routing rules)"), "{text}");
    }
    let (code, text) = run(&["remove"])?;
    assert!(
        code == Some(0) && text.contains("nothing to remove"),
        "{text}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_that_somebody_removes_is_put_back() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let fixture = AgentFixture::new("put-back", cluster).await?;
    let pod = fixture.pod("10.1.0.5")?;
    let _agent = fixture.ready_agent(&["--redirect-interval=100ms"]).await?;
    fixture.lab.node().exec("nft flush ruleset")?;
    eventually(DEADLINE, async || {
        let reply = ask::get(&pod, "/latest/user-data")?;
        ensure!(is_agent(&reply), "{reply:?}");
        let metrics = fixture.admin("/metrics")?.body;
        ensure!(metrics.contains("redirect_restored_total 1"), "{metrics}");
        Ok(())
    })
    .await
}

/// With each backend, the rules that close the metadata address stay, and no pod gets a response.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_interface_is_not_ready() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let fixture = AgentFixture::new("wrong-interface", cluster).await?;
    let pod = fixture.pod("10.1.0.5")?;
    let metric = |state: &str| format!("rolegate_redirect_pods{{state=\"{state}\"}} 1");
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        let redirect = format!("--redirect={backend}");
        let mut agent = fixture.agent(&[&redirect, "--host-interface=cali+"])?;
        let why = agent
            .until(DEADLINE, async || {
                let reply = fixture.admin("/readyz")?;
                let mut lines = reply.body.lines();
                let line = lines.find(|line| line.contains("pods are blocked"));
                let line = line.map(str::to_owned).context(reply.body.clone())?;
                ensure!(reply.status == 503, "{backend}: {}", reply.body);
                Ok(line)
            })
            .await?;
        assert!(
            why.starts_with("[-] redirect-check") && why.contains("arrive on eni"),
            "{why}"
        );
        assert!(
            why.contains("--host-interface=cali+ does not match"),
            "{why}"
        );
        let metrics = fixture.admin("/metrics")?.body;
        assert!(metrics.contains(&metric("blocked")), "{metrics}");
        assert!(ask::get(&pod, "/latest/user-data").is_err());
        assert!(agent.stop().await?.success());

        // With the right interface the agent is ready, on the same node.
        let mut agent = fixture.agent(&[&redirect])?;
        fixture.ready(&mut agent).await?;
        eventually(DEADLINE, async || {
            let metrics = fixture.admin("/metrics")?.body;
            ensure!(metrics.contains(&metric("ok")), "{metrics}");
            Ok(())
        })
        .await?;
        let netns = pod.path().display().to_string();
        let check = rolegate(
            fixture.lab.node(),
            &["redirect", "check", "--netns", &netns],
        )?;
        assert_eq!(check.status.code(), Some(0), "{check:?}");
        assert!(agent.stop().await?.success());
        let removed = rolegate(fixture.lab.node(), &["redirect", "remove"])?;
        assert!(removed.status.success(), "{removed:?}");
    }
    Ok(())
}

/// Without the capability the state of the installed rules is unknown.
#[tokio::test(flavor = "multi_thread")]
async fn show_without_rights_is_an_error() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let path = rolegate_testkit::Rolegate::path()?.display().to_string();
    for arguments in [
        &["redirect", "show"][..],
        &["redirect", "show", "--backend=nftables"],
    ] {
        let output = clean(lab.node(), Path::new("setpriv"))
            .args([
                "--bounding-set=-net_admin",
                "--inh-caps=-net_admin",
                "--",
                &path,
            ])
            .args(arguments)
            .output()?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("CAP_NET_ADMIN"), "{said}");
    }
    Ok(())
}

/// Requests a path that the agent never forwards, from several threads and without a pause, until
/// it is dropped.
struct RequestLoop {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    asking: Vec<JoinHandle<()>>,
}

impl RequestLoop {
    fn start(netns: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicUsize::new(0));
        let asking = [METADATA, METADATA, METADATA_6, METADATA_6]
            .into_iter()
            .map(|target| {
                let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
                let netns = netns.to_owned();
                thread::spawn(move || {
                    // The thread runs in the pod's namespace, which exists as long as the thread.
                    let _ = in_netns(&netns, || {
                        while !stop.load(Ordering::Relaxed) {
                            let _ = knock(target);
                            asked.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                })
            })
            .collect();
        Self {
            stop,
            asked,
            asking,
        }
    }

    /// Waits until this many more requests were sent.
    async fn asks(&self, more: usize) -> anyhow::Result<()> {
        let until = self.asked.load(Ordering::Relaxed) + more;
        eventually(DEADLINE, async || {
            let asked = self.asked.load(Ordering::Relaxed);
            ensure!(asked >= until, "{asked} of {until}");
            Ok(())
        })
        .await
    }
}

impl Drop for RequestLoop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.asking.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Sends one request over a new connection, with a short timeout.
fn knock(target: SocketAddr) -> std::io::Result<()> {
    let patience = Duration::from_millis(200);
    let mut stream = TcpStream::connect_timeout(&target, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(
        b"GET /latest/user-data HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n",
    )?;
    stream.read(&mut [0; 64]).map(|_| ())
}

/// Flushes of all kinds, for each backend, as other programs on a host run them.
fn flushes(backend: &str) -> Vec<Vec<String>> {
    let words = |commands: &[&str]| commands.iter().map(ToString::to_string).collect();
    if backend == "nftables" {
        return vec![
            words(&["nft flush ruleset"]),
            words(&["nft delete table inet rolegate"]),
        ];
    }
    let each = |table: &str| {
        [backend.to_owned(), backend.replace("iptables", "ip6tables")]
            .map(|program| format!("{program} -w 5 -t {table} -F"))
    };
    vec![
        each("filter").to_vec(),
        each("nat").to_vec(),
        ["filter", "nat", "raw"].map(each).concat(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn flush_opens_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::shared().await?;
    let fixture = AgentFixture::new("flush", cluster).await?;
    let pod = fixture.pod("10.1.0.5")?;
    let node = fixture.lab.node();
    for target in [METADATA, METADATA_6] {
        let open = ask::get_at(&pod, target, "/latest/user-data")?;
        assert!(open.body.contains(NODE_SECRET_MARKER), "the lab is real");
    }
    let before = fixture.asked_for("user-data");
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        let redirect = format!("--redirect={backend}");
        let mut agent = fixture.agent(&[&redirect])?;
        fixture.ready(&mut agent).await?;
        let pods = RequestLoop::start(&pod.path());
        for commands in flushes(backend) {
            for _ in 0..3 {
                for command in &commands {
                    // The flushed rules may not be restored yet.
                    let _ = node.exec(command);
                }
                pods.asks(8).await?;
            }
            // The node's own path stays open, and the redirect is restored.
            let own = ask::get_at(node, METADATA, "/latest/meta-data/instance-id")?;
            assert_eq!(own.status, 200, "{own:?}");
            eventually(DEADLINE, async || {
                for target in [METADATA, METADATA_6] {
                    let reply = ask::get_at(&pod, target, "/latest/user-data")?;
                    ensure!(is_agent(&reply), "{commands:?}: {reply:?}");
                }
                Ok(())
            })
            .await?;
        }
        let answered = fixture.asked_for("user-data") - before;
        assert_eq!(answered, 0, "{backend}: answers of the node's own service");
        // No agent is running that could restore rules: the routing rules protect alone.
        agent.kill();
        for command in flushes(backend).concat() {
            let _ = node.exec(&command);
        }
        pods.asks(16).await?;
        let netns = pod.path().display().to_string();
        let check = rolegate(node, &["redirect", "check", "--netns", &netns])?;
        let text = String::from_utf8(check.stdout)?;
        assert_eq!(check.status.code(), Some(BLOCKED), "{text}");
        assert!(
            text.contains("routing rules of this host: in place"),
            "{text}"
        );
        drop(pods);
        let answered = fixture.asked_for("user-data") - before;
        assert_eq!(answered, 0, "{backend}: answers of the node's own service");
        let removed = rolegate(node, &["redirect", "remove"])?;
        assert!(removed.status.success(), "{removed:?}");
    }
    let open = ask::get_at(&pod, METADATA, "/latest/user-data")?;
    assert!(open.body.contains(NODE_SECRET_MARKER), "removed is removed");
    Ok(())
}
