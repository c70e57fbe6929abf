//! Finding out where we run: the base ARN, and which roles are ours and for nobody else.

use std::time::Duration;

use rolegate_core::arn::{ArnError, resolve};
use rolegate_core::config::RuleConfig;
use rolegate_core::rulebook::Facts;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::identity::{Discovered, discover};
use crate::imds::Imds;
use crate::sts::Sts;

/// The first pause after a try that did not bring all; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Tries after which a metadata service that does not answer is taken for absent, as on nodes
/// outside of EC2.
const TRIES: u32 = 3;
/// How often everything is looked at again: a node's instance profile can be exchanged.
const AGAIN: Duration = Duration::from_secs(600);

/// Finds out, and looks again now and then.
pub struct Discovery {
    /// What flags say, which goes before what is found.
    pub flags: RuleConfig,
    /// Whether decisions wait until a base ARN is found.
    pub base_required: bool,
    /// The life asked of STS where no grant says another, seconds.
    pub session_seconds: u32,
    /// Who we are at AWS.
    pub sts: Sts,
    /// The node's metadata service.
    pub imds: Imds,
    /// Told the instance's ID, or why it is not known.
    pub instance: Box<dyn Fn(Result<String, String>) + Send + Sync>,
    /// Told what is found.
    pub facts: watch::Sender<Option<Facts>>,
}

impl Discovery {
    /// Runs for ever.
    pub async fn run(self) {
        let mut pause = FIRST_PAUSE;
        let mut said = String::new();
        let mut longest = None;
        let mut tries = 0;
        loop {
            let found = discover(&self.sts, &self.imds).await;
            tries += 1;
            (self.instance)(match &found.instance {
                Ok(instance) => Ok(instance.id.clone()),
                Err(error) => Err(error.to_string()),
            });
            let complete = found.node_role.is_ok() && found.instance.is_ok();
            match self.facts(&found) {
                // The node's role may be somebody else's to assume: better to wait for its name.
                Ok(_) if !complete && tries < TRIES => {}
                Ok(facts) => {
                    if longest != facts.longest_session {
                        longest = facts.longest_session;
                        tell_longest(longest, self.session_seconds);
                    }
                    self.facts.send_if_modified(|known| {
                        let new = known.as_ref() != Some(&facts);
                        // What is known is not unlearned by a service that is away for a while.
                        let better = complete || known.is_none();
                        if new && better {
                            *known = Some(facts);
                        }
                        new && better
                    });
                    if !complete {
                        tell(&mut said, "the node's metadata service does not say which role the node has; if it has one, name it with --own-role, so that no pod gets it".into());
                    }
                }
                Err(reason) => tell(&mut said, reason),
            }
            if complete && self.facts.borrow().is_some() {
                pause = FIRST_PAUSE;
                tokio::time::sleep(AGAIN).await;
            } else {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// What decisions need, or what is missing. Without our own identity at STS no session can be
    /// had either, so waiting for it costs nothing and keeps our own role from everyone.
    fn facts(&self, found: &Discovered) -> Result<Facts, String> {
        let caller = found.caller.as_ref();
        caller.map_err(|failure| format!("STS does not say who we are: {failure}"))?;
        let base = self.flags.base.clone().or_else(|| found.base_arn());
        if base.is_none() && self.base_required {
            return Err("no base ARN is found: set --base-role-arn".into());
        }
        let own_roles = found.own_roles();
        let default_role = self
            .flags
            .default_role
            .as_deref()
            .map(|role| resolve(role, base.as_ref()))
            .transpose()
            .map_err(|error: ArnError| format!("--default-role: {error}"))?;
        if let Some(role) = &default_role
            && own_roles
                .iter()
                .chain(&self.flags.own_roles)
                .any(|own| own.is(role))
        {
            error!(%role, "the default role is the node's or rolegate's own: it is refused to every pod; name another with --default-role");
        }
        Ok(Facts {
            base,
            own_roles,
            longest_session: found.longest_session(),
        })
    }
}

/// Says that sessions are shorter than flags or grants may ask for.
fn tell_longest(longest: Option<u32>, asked: u32) {
    const WHY: &str = "rolegate's own credentials are a role's session, as they always are with \
                       --assume-role, so STS gives no more";
    match longest {
        Some(longest) if asked > longest => warn!(
            longest,
            asked,
            reason = WHY,
            "sessions are shorter than --session-duration asks for"
        ),
        Some(longest) => info!(longest, reason = WHY, "the longest session that STS gives"),
        None => {}
    }
}

/// Says the same thing once.
fn tell(said: &mut String, what: String) {
    if *said != what {
        warn!(
            reason = what,
            "rolegate's AWS identity is not known in full"
        );
        *said = what;
    }
}
