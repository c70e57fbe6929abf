//! Detects the AWS environment: the base ARN and the reserved roles.

use std::time::Duration;

use rolegate_core::arn::{ArnError, resolve};
use rolegate_core::config::RuleConfig;
use rolegate_core::rule_set_builder::AwsEnvironment;
use rolegate_runtime::backoff::Backoff;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::identity::{Discovered, discover};
use crate::imds::Imds;
use crate::sts::Sts;

/// The shortest and longest delay after an incomplete attempt.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Attempts after which a metadata service that does not respond is considered absent, as on nodes
/// outside EC2.
const MAX_ATTEMPTS: u32 = 3;
/// Interval at which the environment is detected again: a node's instance profile can be replaced.
const POLL_INTERVAL: Duration = Duration::from_secs(600);

/// Detects the AWS environment periodically.
pub struct Discovery {
    /// Values set by flags, which take precedence over detected ones.
    pub flags: RuleConfig,
    /// `true` if decisions wait until a base ARN is known.
    pub base_required: bool,
    /// The session duration requested from STS if no grant sets another, in seconds.
    pub session_seconds: u32,
    /// The STS client, for our own identity.
    pub sts: Sts,
    /// The node's metadata service.
    pub imds: Imds,
    /// Called with the instance ID, or with the reason why it is unknown.
    pub instance: Box<dyn Fn(Result<String, String>) + Send + Sync>,
    /// Receives the result.
    pub aws_environment: watch::Sender<Option<AwsEnvironment>>,
}

impl Discovery {
    /// Runs forever.
    pub async fn run(self) {
        let mut backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
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
            match self.aws_environment(&found) {
                // The node's role may be one that others could request, so wait for its name.
                Ok(_) if !complete && tries < MAX_ATTEMPTS => {}
                Ok(aws_environment) => {
                    if longest != aws_environment.max_session_seconds {
                        longest = aws_environment.max_session_seconds;
                        report_max_duration(longest, self.session_seconds);
                    }
                    self.aws_environment.send_if_modified(|known| {
                        let new = known.as_ref() != Some(&aws_environment);
                        // A service that is unavailable for a while does not discard known values.
                        let better = complete || known.is_none();
                        if new && better {
                            *known = Some(aws_environment);
                        }
                        new && better
                    });
                    if !complete {
                        report(
                            &mut said,
                            "the node's metadata service does not report the node's \
                         role; if it has one, name it with --reserved-role, so that no pod gets \
                         it"
                            .into(),
                        );
                    }
                }
                Err(reason) => report(&mut said, reason),
            }
            if complete && self.aws_environment.borrow().is_some() {
                backoff.reset();
                tokio::time::sleep(POLL_INTERVAL).await;
            } else {
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }

    /// Returns the inputs of decisions, or the missing one. Waiting for our own identity costs
    /// nothing, as without STS there are no sessions, and it keeps our own role reserved.
    fn aws_environment(&self, found: &Discovered) -> Result<AwsEnvironment, String> {
        let caller = found.caller.as_ref();
        caller.map_err(|failure| format!("cannot get our own identity from STS: {failure}"))?;
        let base = self.flags.base.clone().or_else(|| found.base_arn());
        if base.is_none() && self.base_required {
            return Err("no base ARN found: set --base-role-arn".into());
        }
        let reserved_roles = found.reserved_roles();
        let default_role = self
            .flags
            .default_role
            .as_deref()
            .map(|role| resolve(role, base.as_ref()))
            .transpose()
            .map_err(|error: ArnError| format!("--default-role: {error}"))?;
        if let Some(role) = &default_role
            && reserved_roles
                .iter()
                .chain(&self.flags.reserved_roles)
                .any(|own| own.is(role))
        {
            error!(%role, "the default role is the node's or rolegate's own, so it is denied to \
             every pod: set another with --default-role");
        }
        Ok(AwsEnvironment {
            base,
            reserved_roles,
            max_session_seconds: found.max_session_seconds(),
        })
    }
}

/// Reports that sessions are shorter than flags or grants may request.
fn report_max_duration(longest: Option<u32>, asked: u32) {
    const WHY: &str = "rolegate's own credentials are a role's session, as always with \
     --assume-role, so the limit of role chaining applies";
    match longest {
        Some(longest) if asked > longest => warn!(
            longest,
            asked,
            reason = WHY,
            "sessions are shorter than --session-duration requests"
        ),
        Some(longest) => info!(longest, reason = WHY, "maximum session duration"),
        None => {}
    }
}

/// Reports a message unless it was reported last.
fn report(said: &mut String, what: String) {
    if *said != what {
        warn!(reason = what, "the AWS environment is not known completely");
        *said = what;
    }
}
