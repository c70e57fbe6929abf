//! The steps in order.

use std::time::Duration;

use anyhow::ensure;
use jiff::Timestamp;
use rolegate_devkit::StsFailure;
use serde_json::Value;
use tokio::time::Instant;

use super::ask::{Ask, TOKEN};
use super::pods::{self, CHECKOUT, FRONTEND, NODE_ROLE, Pod, REPORTS, RETURNS, SHELL};
use super::report::{Step, Suggestion};
use super::screen::Screen;
use super::stage::{MakeOptions, Stage};
use super::step::{StepInfo, Take};

const ROLE_NAME: &str = "/latest/meta-data/iam/security-credentials/";
/// Validity of the sessions that are rotated. The agent refreshes them before half of it has
/// passed.
const SHORT_VALIDITY: Duration = Duration::from_secs(15);

/// Runs all steps, and starts the agent after the first one.
///
/// # Errors
/// Returns an error if the agent does not start or the output cannot be written, but not if a step
/// fails.
pub(super) async fn play(
    stage: &mut Stage<'_>,
    screen: &mut Screen,
    make: MakeOptions,
) -> anyhow::Result<Vec<Step>> {
    let mut steps = vec![Take::play(stage, screen, 1, WITHOUT, without).await?];
    stage.start_agent(make).await?;
    stage.start_webhook().await?;
    macro_rules! steps {
        ($($plot:ident: $act:ident),* $(,)?) => {$(
            steps.push(Take::play(stage, screen, steps.len() + 1, $plot, $act).await?);
        )*};
    }
    steps![
        ALLOWED: allowed,
        REFUSED: refused,
        NO_ROLE: no_role,
        NODE_WISH: node_role_request,
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

/// Returns the commands to try after the steps.
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
            "credentials of an allowed role",
            &CHECKOUT,
            credentials(&CHECKOUT),
        ),
        ask(
            "a role that the namespace does not allow",
            &RETURNS,
            credentials(&RETURNS),
        ),
        ask("the node's own role", &CHECKOUT, node_role()),
        ask(
            "metadata that pods may read: the node's location",
            &FRONTEND,
            Ask::get("/latest/meta-data/placement/region"),
        ),
        ask("a metadata token", &CHECKOUT, Ask::token()),
        admin("the agent's readiness", "/readyz?verbose"),
        admin("its metrics", "/metrics"),
    ]
}

fn credentials(pod: &Pod) -> Ask {
    Ask::get(format!("{ROLE_NAME}{}", pod.role.unwrap_or_default()))
}

fn node_role() -> Ask {
    Ask::get(format!("{ROLE_NAME}{NODE_ROLE}"))
}

const WITHOUT: StepInfo = StepInfo {
    name: "without-rolegate",
    title: "Without rolegate, every pod has the node's role",
    why: "A pod with the permissions of its whole node is what rolegate prevents.",
};

async fn without(take: &mut Take<'_>) -> anyhow::Result<()> {
    take.ask(&FRONTEND, Ask::get(ROLE_NAME)).await;
    let reply = take.ask(&FRONTEND, node_role()).await;
    ensure!(
        reply.leaks(),
        "the metadata stand-in should return the node's credentials to every client"
    );
    Ok(())
}

const ALLOWED: StepInfo = StepInfo {
    name: "allowed-role",
    title: "With the agent: a pod gets the role it is annotated with",
    why: "The pod's SDK needs no change and no secret, and CloudTrail shows the workload.",
};

async fn allowed(take: &mut Take<'_>) -> anyhow::Result<()> {
    let name = take.until(&CHECKOUT, Ask::get(ROLE_NAME), 200).await?;
    ensure!(
        Some(name.body.as_str()) == CHECKOUT.role,
        "the role is not the pod's"
    );
    take.until(&CHECKOUT, credentials(&CHECKOUT), 200)
        .await?
        .session()?;
    let calls = take.stage.sts.calls();
    let call = calls
        .iter()
        .find(|call| call.role_arn.ends_with(":role/checkout"));
    let Some(call) = call else {
        anyhow::bail!("STS received no request for the role");
    };
    take.note(format!(
        "STS received a request for {} as session {}",
        call.role_arn, call.session_name
    ));
    Ok(())
}

const REFUSED: StepInfo = StepInfo {
    name: "refused-role",
    title: "A role that the namespace does not allow is denied",
    why: "An annotation is only a request. The permission comes from the namespace, and an Event explains the denial.",
};

async fn refused(take: &mut Take<'_>) -> anyhow::Result<()> {
    let reply = take.expect(&RETURNS, credentials(&RETURNS), 403).await?;
    ensure!(
        reply.body.contains("payments-admin"),
        "the message should name the role"
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

const NO_ROLE: StepInfo = StepInfo {
    name: "no-role",
    title: "A pod without a role gets none",
    why: "SDKs treat 404 as \"no role\": they try their next source and never get the node's role.",
};

async fn no_role(take: &mut Take<'_>) -> anyhow::Result<()> {
    take.expect(&FRONTEND, Ask::get(ROLE_NAME), 404).await?;
    Ok(())
}

const NODE_WISH: StepInfo = StepInfo {
    name: "node-role-wished",
    title: "No pod gets the node's role, even if its namespace allows every role",
    why: "The node's role may assume all others, so a pod with it would have every role.",
};

async fn node_role_request(take: &mut Take<'_>) -> anyhow::Result<()> {
    take.expect(&SHELL, credentials(&SHELL), 403).await?;
    Ok(())
}

const NODE_CREDENTIALS: StepInfo = StepInfo {
    name: "node-credentials",
    title: "No spelling of a path reaches the node's credentials",
    why: "Only canonical paths are accepted, so the agent and the metadata service cannot read a path differently.",
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

const TOKENS: StepInfo = StepInfo {
    name: "metadata-tokens",
    title: "IMDSv2: a token is bound to its pod",
    why: "A token that was stolen or fetched through a proxy is useless.",
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

const SHOPPING: StepInfo = StepInfo {
    name: "role-shopping",
    title: "A denied role is rejected before the pod exists",
    why: "A namespace's owner could allow itself every role. Only the cluster administrator's grants decide.",
};

/// Namespace `tools` allows every role with its annotation, but no grant covers it.
async fn shopping(take: &mut Take<'_>) -> anyhow::Result<()> {
    let stage = take.stage;
    let mut create = async |namespace: &str, role: &str| {
        let deployment = pods::deployment(namespace, role);
        let (created, said) = stage.create(deployment).await?;
        take.note(format!(
            "kubectl create -f deployment.yaml   (namespace {namespace}, role {role})"
        ));
        take.note(said.clone());
        anyhow::Ok((created, said))
    };
    let (created, said) = create("tools", "payments-admin").await?;
    ensure!(!created, "the API server accepted it");
    ensure!(
        said.contains("denied the request") && said.contains("payments-admin"),
        "the message should name the denied role"
    );
    let (created, _) = create("shop", "checkout").await?;
    ensure!(created, "a granted role was denied");
    Ok(())
}

const STOLEN: StepInfo = StepInfo {
    name: "stolen-node",
    title: "A stolen node gets only its own pods' roles from the broker",
    why: "With a broker, nodes have no AWS permissions. A thief gets only the roles of pods on that node.",
};

async fn stolen(take: &mut Take<'_>) -> anyhow::Result<()> {
    let stolen = take.stage.steal().await?;
    take.note(format!(
        "with the certificate of {} the thief claims {}:",
        pods::NODE,
        pods::NODE
    ));
    for pod in &stolen.own {
        take.note(format!("  {pod}"));
    }
    take.note(format!("and claims {}: {}", pods::OTHER_NODE, stolen.other));
    let theirs = |pod: &String| pod.starts_with("shop/checkout: role checkout");
    ensure!(
        stolen.own.iter().any(theirs),
        "the response lacks the node's own pods"
    );
    let others = |pod: &String| pod.starts_with("shop/ledger");
    ensure!(
        !stolen.own.iter().any(others),
        "the response contains a pod of another node"
    );
    Ok(())
}

const RIGHT_GONE: StepInfo = StepInfo {
    name: "right-taken-away",
    title: "The namespace's owner revokes a permission, which takes effect at once",
    why: "A cached session is not served after the rules have changed.",
};

async fn right_gone(take: &mut Take<'_>) -> anyhow::Result<()> {
    take.until(&CHECKOUT, credentials(&CHECKOUT), 200)
        .await?
        .session()?;
    let change = |take: &mut Take<'_>, allowed: &str| {
        take.stage
            .kube
            .put_namespace(pods::namespace("shop", allowed));
        take.note(format!(
            "namespace shop: iam.amazonaws.com/allowed-roles = {allowed}"
        ));
        Instant::now()
    };
    let changed = change(take, pods::SHOP_ALLOWS_LESS);
    take.until(&CHECKOUT, credentials(&CHECKOUT), 403).await?;
    take.note(format!(
        "denied {} ms after the change",
        changed.elapsed().as_millis()
    ));
    change(take, pods::SHOP_ALLOWS);
    take.until(&CHECKOUT, credentials(&CHECKOUT), 200)
        .await?
        .session()?;
    Ok(())
}

const ROTATION: StepInfo = StepInfo {
    name: "rotation",
    title: "A session is refreshed long before it expires (STS issues 15 s here to make it visible)",
    why: "Pods never wait for STS and never get a session that is about to expire.",
};

async fn rotation(take: &mut Take<'_>) -> anyhow::Result<()> {
    take.stage.sts.set_lifetime(Some(SHORT_VALIDITY));
    take.stage.put_pod(&REPORTS);
    take.note(format!("pod {} starts", REPORTS.full_name()));
    let first = take
        .until(&REPORTS, credentials(&REPORTS), 200)
        .await?
        .session()?;
    let next = |session: &_| *session != first;
    take.steadily(&REPORTS, credentials(&REPORTS), next).await?;
    let left = first.expiration.duration_since(Timestamp::now()).as_secs();
    take.note(format!("the previous session expires in {left} s"));
    Ok(())
}

const STS_DOWN: StepInfo = StepInfo {
    name: "sts-down",
    title: "STS fails: valid sessions are still served",
    why: "An STS outage does not affect pods while their sessions are valid.",
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
    let failure = StsFailure::new(503, "ServiceUnavailable", "STS is unavailable.");
    stage.sts.fail_with(Some(failure));
    take.note("STS responds to every call with 503".into());
    let before = calls();
    let ask = credentials(&REPORTS);
    let held = stage.ask(&REPORTS, &ask).await.session()?;
    take.steadily(&REPORTS, ask.clone(), |_| calls() > before)
        .await?;
    take.note("the agent failed to refresh the session".into());
    let failed = Instant::now();
    let settled = |_: &_| failed.elapsed() > Duration::from_millis(500);
    let served = take.steadily(&REPORTS, ask, settled).await?;
    ensure!(
        served == held,
        "the session differs from the one before the STS outage"
    );
    Ok(())
}

const STS_BACK: StepInfo = StepInfo {
    name: "sts-back",
    title: "STS recovers: sessions are refreshed",
    why: "Recovery requires no restart.",
};

async fn sts_back(take: &mut Take<'_>) -> anyhow::Result<()> {
    let old = take
        .stage
        .ask(&REPORTS, &credentials(&REPORTS))
        .await
        .session()?;
    take.stage.sts.set_lifetime(None);
    take.stage.sts.fail_with(None);
    take.note("STS responds again".into());
    take.steadily(&REPORTS, credentials(&REPORTS), |session| *session != old)
        .await?;
    Ok(())
}
