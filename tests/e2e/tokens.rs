//! Metadata tokens, which clients keep for hours while agents restart.

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, ensure};

use crate::fixture::DEADLINE;
use crate::loopback::{Agent, Surroundings};

const POD: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 2);
const FILES: u32 = 1024;
const ROLE: &str = "/latest/meta-data/iam/security-credentials/reader";

fn token(agent: &Agent) -> anyhow::Result<String> {
    let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", "21600")];
    let answer = agent
        .connect(POD)?
        .request("PUT", "/latest/api/token", &ttl)?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(answer.body)
}

fn status(agent: &Agent, from: Ipv4Addr, token: &str) -> anyhow::Result<u16> {
    let token = [("X-aws-ec2-metadata-token", token)];
    Ok(agent.connect(from)?.request("GET", ROLE, &token)?.status)
}

/// Each token is valid for the pod that requested it, and for no other pod.
fn all_are_good(agent: &Agent, tokens: &[String], when: &str) -> anyhow::Result<()> {
    for (number, token) in tokens.iter().enumerate() {
        let found = status(agent, POD, token)?;
        ensure!(
            found == 200,
            "token {number} is answered {found} after {when}"
        );
        ensure!(status(agent, OTHER, token)? == 401, "{when}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_survive_a_restart() -> anyhow::Result<()> {
    let fixture = Surroundings::new().await?;
    fixture.pod("pod", &[POD]);
    fixture.pod("other", &[OTHER]);
    let mut agent = fixture.agent(FILES, &[]).await?;
    agent.serves(POD).await?;
    ensure!(!agent.admin("/readyz")?.body.contains("token-keys"));
    let mut tokens = vec![token(&agent)?];

    // A crash.
    agent.process.kill();
    drop(agent);
    let mut agent = fixture.agent(FILES, &[]).await?;
    agent.serves(POD).await?;
    all_are_good(&agent, &tokens, "a crash")?;
    tokens.push(token(&agent)?);

    // A graceful restart.
    ensure!(agent.process.stop().await?.success());
    drop(agent);
    let mut agent = fixture.agent(FILES, &[]).await?;
    agent.serves(POD).await?;
    all_are_good(&agent, &tokens, "a restart")?;
    tokens.push(token(&agent)?);

    // A handover, and a crash of the new agent.
    let mut next = fixture.agent(FILES, &[]).await?;
    ensure!(
        next.process.log().contains("took over"),
        "{}",
        next.process.log()
    );
    next.serves(POD).await?;
    ensure!(agent.process.stop().await?.success());
    all_are_good(&next, &tokens, "a hand-over")?;
    tokens.push(token(&next)?);
    next.process.kill();
    drop((agent, next));
    let mut agent = fixture.agent(FILES, &[]).await?;
    agent.serves(POD).await?;
    all_are_good(&agent, &tokens, "a crash after a hand-over")?;

    // Only root can read the keys.
    let mut keys = std::fs::read_dir(fixture.runtime.path())?.filter_map(|entry| {
        let path = entry.ok()?.path();
        (path.extension()? == "keys").then_some(path)
    });
    let keys = keys.next().context("no keys are kept")?;
    let found = std::fs::symlink_metadata(&keys)?;
    ensure!(
        found.is_file() && found.mode() & 0o7777 == 0o600,
        "{found:?}"
    );
    ensure!(std::fs::metadata(fixture.runtime.path())?.mode() & 0o7777 == 0o700);

    // A file that another user could have written is not trusted: its tokens become invalid, and
    // new ones are issued.
    ensure!(agent.process.stop().await?.success());
    drop(agent);
    std::os::unix::fs::chown(&keys, Some(65_534), None)?;
    let mut agent = fixture.agent(FILES, &[]).await?;
    agent.serves(POD).await?;
    ensure!(
        agent.process.log().contains("it belongs to another user"),
        "{}",
        agent.process.log()
    );
    ensure!(status(&agent, POD, &tokens[0])? == 401);
    let token = token(&agent)?;
    ensure!(status(&agent, POD, &token)? == 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_tokens_are_on_no_disk() -> anyhow::Result<()> {
    let mut fixture = Surroundings::new().await?;
    // The build directory is on a disk.
    let test = std::env::current_exe()?;
    fixture.runtime = tempfile::tempdir_in(test.parent().context("no folder")?)?;
    fixture.pod("pod", &[POD]);
    let mut agent = fixture.agent(FILES, &[]).await?;
    agent.serves(POD).await?;
    let ready = agent.admin("/readyz")?;
    ensure!(
        ready.status == 200
            && ready
                .body
                .contains("token-keys: metadata tokens are valid only until this process exits"),
        "{ready:?}"
    );
    ensure!(
        agent.process.log().contains("not be written to disk"),
        "{}",
        agent.process.log()
    );
    let token = token(&agent)?;
    ensure!(status(&agent, POD, &token)? == 200);
    for entry in std::fs::read_dir(fixture.runtime.path())? {
        let path = entry?.path();
        ensure!(
            path.extension().is_some_and(|it| it == "sock"),
            "{}",
            path.display()
        );
    }
    // A handover keeps the tokens nevertheless.
    let mut next = fixture.agent(FILES, &[]).await?;
    next.process.wait_for_line("took over", DEADLINE).await?;
    next.serves(POD).await?;
    ensure!(status(&next, POD, &token)? == 200);
    Ok(())
}
