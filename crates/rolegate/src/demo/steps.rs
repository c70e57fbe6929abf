//! The steps, one after the other.

use std::time::Duration;

use anyhow::ensure;
use jiff::Timestamp;
use rolegate_devkit::StsFailure;
use serde_json::Value;
use tokio::time::Instant;

use super::ask::{Ask, TOKEN};
use super::cast::{self, CHECKOUT, FRONTEND, NODE_ROLE, Pod, REPORTS, RETURNS, SHELL};
use super::report::{Step, Suggestion};
use super::screen::Screen;
use super::stage::Stage;
use super::take::{Plot, Take};
use crate::agent::AgentFlags;

const ROLE_NAME: &str = "/latest/meta-data/iam/security-credentials/";
/// Life of the sessions that are rotated: the agent fetches again before its half.
const SHORT_LIFE: Duration = Duration::from_secs(15);

/// Plays all steps; the agent is started after the first one.
///
/// # Errors
/// When the agent doesn't start or the screen can't be written, not when a step goes wrong.
pub(super) async fn play(
    stage: &mut Stage<'_>,
    screen: &mut Screen,
    flags: AgentFlags,
) -> anyhow::Result<Vec<Step>> {
    let mut steps = vec![Take::play(stage, screen, 1, WITHOUT, without).await?];
    stage.start_agent(flags).await?;
    stage.start_gate().await?;
    macro_rules! steps {
        ($($plot:ident: $act:ident),* $(,)?) => {$(
            steps.push(Take::play(stage, screen, steps.len() + 1, $plot, $act).await?);
        )*};
    }
    steps![
        ALLOWED: allowed,
        REFUSED: refused,
        NO_ROLE: no_role,
        NODE_WISH: node_wish,
        NODE_CREDENTIALS: node_credentials,
        TOKENS: tokens,
        SHOPPING: shopping,
        STOLEN: stolen,
        RIGHT_GONE: right_gone,
        ROTATION: rotation,
        STS_DOWN: sts_down,
        STS_BACK: sts_back,
    ];
    Ok(steps)
}

/// What may be tried after the steps.
pub(super) fn suggestions(stage: &Stage<'_>) -> Vec<Suggestion> {
    let ask = |what, pod, ask| Suggestion {
        what,
        command: stage.command(pod, &ask),
    };
    let admin = |what, path| {
        let url = stage.admin().unwrap_or_default();
        Suggestion {
            what,
            command: format!("{}curl '{url}{path}'", stage.network.node_prefix()),
        }
    };
    vec![
        ask(
            "credentials of a role that the namespace allows",
            &CHECKOUT,
            credentials(&CHECKOUT),
        ),
        ask(
            "a role that it does not allow",
            &RETURNS,
            credentials(&RETURNS),
        ),
        ask("the node's own role", &CHECKOUT, node_role()),
        ask(
            "what is open to pods: where the node is",
            &FRONTEND,
            Ask::get("/latest/meta-data/placement/region"),
        ),
        ask("a metadata token", &CHECKOUT, Ask::token()),
        admin("what the agent is ready for", "/readyz?verbose"),
        admin("its metrics", "/metrics"),
    ]
}

fn credentials(pod: &Pod) -> Ask {
    Ask::get(format!("{ROLE_NAME}{}", pod.role.unwrap_or_default()))
}

fn node_role() -> Ask {
    Ask::get(format!("{ROLE_NAME}{NODE_ROLE}"))
}

const WITHOUT: Plot = Plot {
    name: "without-rolegate",
    title: "Without rolegate, every pod has the node's role",
    why: "This is what must never happen again: a pod with the rights of its whole node.",
};

async fn without(take: &mut Take<'_>) -> anyhow::Result<()> {
    take.ask(&FRONTEND, Ask::get(ROLE_NAME)).await;
    let reply = take.ask(&FRONTEND, node_role()).await;
    ensure!(
        reply.leaks(),
        "the metadata stand-in should give the node's credentials to whoever reaches it"
    );
    Ok(())
}

const ALLOWED: Plot = Plot {
    name: "allowed-role",
    title: "With the agent: a pod gets the role it is annotated with",
    why: "The pod's SDK needs no change and no secret, and CloudTrail shows which workload it was.",
};

async fn allowed(take: &mut Take<'_>) -> anyhow::Result<()> {
    let name = take.until(&CHECKOUT, Ask::get(ROLE_NAME), 200).await?;
    ensure!(
        Some(name.body.as_str()) == CHECKOUT.role,
        "this is not the pod's role"
    );
    take.until(&CHECKOUT, credentials(&CHECKOUT), 200)
        .await?
        .session()?;
    let calls = take.stage.sts.calls();
    let call = calls
        .iter()
        .find(|call| call.role_arn.ends_with(":role/checkout"));
    let Some(call) = call else {
        anyhow::bail!("STS was never asked for the role");
    };
    take.note(format!(
        "STS was asked for {} as session {}",
        call.role_arn, call.session_name
    ));
    Ok(())
}

const REFUSED: Plot = Plot {
    name: "refused-role",
    title: "A role that the namespace may not have is refused",
    why: "An annotation is a wish; the right comes from the namespace, whose owner reads why in an Event.",
};

async fn refused(take: &mut Take<'_>) -> anyhow::Result<()> {
    let reply = take.expect(&RETURNS, credentials(&RETURNS), 403).await?;
    ensure!(
        reply.body.contains("payments-admin"),
        "the sentence should name the role"
    );
    let told = |event: &Value| {
        let text = |path| event.pointer(path).and_then(Value::as_str);
        let about = text("/regarding/name").or(text("/involvedObject/name"));
        let note = text("/note").or(text("/message"))?;
        (about == Some(RETURNS.name)).then(|| note.to_owned())
    };
    let stage = take.stage;
    let event = take
        .wait("an Event", || stage.kube.events().iter().find_map(told))
        .await?;
    take.note(format!("Event on {}: {event}", RETURNS.full_name()));
    Ok(())
}

const NO_ROLE: Plot = Plot {
    name: "no-role",
    title: "A pod without a role gets none",
    why: "404 is what SDKs take for \"no role here\": they go on to the next source, and never get the node's.",
};

async fn no_role(take: &mut Take<'_>) -> anyhow::Result<()> {
    take.expect(&FRONTEND, Ask::get(ROLE_NAME), 404).await?;
    Ok(())
}

const NODE_WISH: Plot = Plot {
    name: "node-role-wished",
    title: "The node's role is nobody's, not even where a namespace allows every role",
    why: "The node's role may assume all the others: who had it would have everything.",
};

async fn node_wish(take: &mut Take<'_>) -> anyhow::Result<()> {
    take.expect(&SHELL, credentials(&SHELL), 403).await?;
    Ok(())
}

const NODE_CREDENTIALS: Plot = Plot {
    name: "node-credentials",
    title: "The node's credentials are out of reach, however they are spelled",
    why: "Only paths in plain spelling are understood, so no spelling is read one way here and another way there.",
};

async fn node_credentials(take: &mut Take<'_>) -> anyhow::Result<()> {
    let asks = [
        node_role(),
        Ask::get("/latest//meta-data/iam/security-credentials/node"),
        Ask::get("/latest/meta-data/placement/%2e%2e/iam/security-credentials/node"),
        Ask::get("/2021-07-15/meta-data/IAM/security-credentials/node"),
        node_role().absolute(),
        Ask::get("/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance"),
        Ask::get("/latest/user-data"),
    ];
    let mut open = Vec::new();
    for ask in asks {
        let reply = take.ask(&CHECKOUT, ask).await;
        let refused = reply
            .status
            .is_some_and(|status| (400..500).contains(&status));
        if reply.leaks() || !refused {
            open.push(take.last_typed());
        }
    }
    ensure!(open.is_empty(), "not refused: {}", open.join("; "));
    Ok(())
}

const TOKENS: Plot = Plot {
    name: "metadata-tokens",
    title: "Metadata version 2: a token is its pod's alone",
    why: "A token that was stolen, or fetched through a proxy, opens nothing.",
};

async fn tokens(take: &mut Take<'_>) -> anyhow::Result<()> {
    let token = take.expect(&CHECKOUT, Ask::token(), 200).await?.body;
    let with = |ask: Ask| ask.with(TOKEN, token.clone());
    take.until(&CHECKOUT, with(credentials(&CHECKOUT)), 200)
        .await?
        .session()?;
    take.expect(&RETURNS, with(credentials(&CHECKOUT)), 401)
        .await?;
    take.expect(
        &CHECKOUT,
        Ask::token().with("X-Forwarded-For", "203.0.113.7"),
        403,
    )
    .await?;
    Ok(())
}

const SHOPPING: Plot = Plot {
    name: "role-shopping",
    title: "The role shopper is refused before there is a pod",
    why: "Whoever owns a namespace may allow itself every role; what counts is what the cluster's administrator grants.",
};

/// Namespace `tools` allows every role by its annotation, and nothing is granted to it.
async fn shopping(take: &mut Take<'_>) -> anyhow::Result<()> {
    let stage = take.stage;
    let mut create = async |namespace: &str, role: &str| {
        let deployment = cast::deployment(namespace, role);
        let (created, said) = stage.create(deployment).await?;
        take.note(format!(
            "kubectl create -f deployment.yaml   (namespace {namespace}, role {role})"
        ));
        take.note(said.clone());
        anyhow::Ok((created, said))
    };
    let (created, said) = create("tools", "payments-admin").await?;
    ensure!(!created, "the API server took it");
    ensure!(
        said.contains("denied the request") && said.contains("payments-admin"),
        "the sentence should say what is refused"
    );
    let (created, _) = create("shop", "checkout").await?;
    ensure!(created, "a role that is granted was refused");
    Ok(())
}

const STOLEN: Plot = Plot {
    name: "stolen-node",
    title: "A stolen node gets its own pods' roles from the broker, and nothing of another node",
    why: "With a broker nodes have no AWS rights; what a thief can have is what was on the node anyway.",
};

async fn stolen(take: &mut Take<'_>) -> anyhow::Result<()> {
    let loot = take.stage.steal().await?;
    take.note(format!(
        "with the certificate of {} the thief claims {}:",
        cast::NODE,
        cast::NODE
    ));
    for pod in &loot.own {
        take.note(format!("  {pod}"));
    }
    take.note(format!("and claims {}: {}", cast::OTHER_NODE, loot.other));
    let theirs = |pod: &String| pod.starts_with("shop/checkout: role checkout");
    ensure!(
        loot.own.iter().any(theirs),
        "the node's own pods are missing"
    );
    let others = |pod: &String| pod.starts_with("shop/ledger");
    ensure!(
        !loot.own.iter().any(others),
        "a pod of another node was told"
    );
    Ok(())
}

const RIGHT_GONE: Plot = Plot {
    name: "right-taken-away",
    title: "The namespace's owner takes the right away, and it is gone",
    why: "A session that is still in memory is not given out once the rules have changed.",
};

async fn right_gone(take: &mut Take<'_>) -> anyhow::Result<()> {
    take.until(&CHECKOUT, credentials(&CHECKOUT), 200)
        .await?
        .session()?;
    let change = |take: &mut Take<'_>, allowed: &str| {
        take.stage
            .kube
            .put_namespace(cast::namespace("shop", allowed));
        take.note(format!(
            "namespace shop: iam.amazonaws.com/allowed-roles = {allowed}"
        ));
        Instant::now()
    };
    let changed = change(take, cast::SHOP_ALLOWS_LESS);
    take.until(&CHECKOUT, credentials(&CHECKOUT), 403).await?;
    take.note(format!(
        "refused {} ms after the change",
        changed.elapsed().as_millis()
    ));
    change(take, cast::SHOP_ALLOWS);
    take.until(&CHECKOUT, credentials(&CHECKOUT), 200)
        .await?
        .session()?;
    Ok(())
}

const ROTATION: Plot = Plot {
    name: "rotation",
    title: "A session is renewed long before it ends (STS gives 15 s here, so that it can be seen)",
    why: "Pods never wait for STS and never get a session that is about to end.",
};

async fn rotation(take: &mut Take<'_>) -> anyhow::Result<()> {
    take.stage.sts.set_lifetime(Some(SHORT_LIFE));
    take.stage.put_pod(&REPORTS);
    take.note(format!("pod {} starts", REPORTS.full_name()));
    let first = take
        .until(&REPORTS, credentials(&REPORTS), 200)
        .await?
        .session()?;
    let next = |session: &_| *session != first;
    take.steadily(&REPORTS, credentials(&REPORTS), next).await?;
    let left = first.expiration.duration_since(Timestamp::now()).as_secs();
    take.note(format!("the session before has {left} s to live"));
    Ok(())
}

const STS_DOWN: Plot = Plot {
    name: "sts-down",
    title: "STS goes down: what is valid is served on",
    why: "An outage of STS is none of the pods' as long as their sessions live.",
};

async fn sts_down(take: &mut Take<'_>) -> anyhow::Result<()> {
    let stage = take.stage;
    let calls = || {
        let calls = stage.sts.calls();
        calls
            .iter()
            .filter(|call| call.role_arn.ends_with(":role/reports-reader"))
            .count()
    };
    let failure = StsFailure::new(503, "ServiceUnavailable", "STS is away.");
    stage.sts.fail_with(Some(failure));
    take.note("STS answers every call with 503".into());
    let before = calls();
    let ask = credentials(&REPORTS);
    let held = stage.ask(&REPORTS, &ask).await.session()?;
    take.steadily(&REPORTS, ask.clone(), |_| calls() > before)
        .await?;
    take.note("the agent tried to renew the session, and failed".into());
    let failed = Instant::now();
    let settled = |_: &_| failed.elapsed() > Duration::from_millis(500);
    let served = take.steadily(&REPORTS, ask, settled).await?;
    ensure!(
        served == held,
        "this is another session than before STS went down"
    );
    Ok(())
}

const STS_BACK: Plot = Plot {
    name: "sts-back",
    title: "STS comes back, and sessions are renewed",
    why: "Nobody has to restart anything.",
};

async fn sts_back(take: &mut Take<'_>) -> anyhow::Result<()> {
    let old = take
        .stage
        .ask(&REPORTS, &credentials(&REPORTS))
        .await
        .session()?;
    take.stage.sts.set_lifetime(None);
    take.stage.sts.fail_with(None);
    take.note("STS answers again".into());
    take.steadily(&REPORTS, credentials(&REPORTS), |session| *session != old)
        .await?;
    Ok(())
}
