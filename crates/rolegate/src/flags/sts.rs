//! Flags about calls to STS, shared by every command that makes such calls.

use clap::{ArgAction, Args};
use rolegate_aws::chain::IntermediateRole;
use rolegate_aws::sts::StsOptions;
use rolegate_core::arn::RoleArn;
use rolegate_core::decision::is_external_id;
use rolegate_core::engine::EngineOptions;
use rolegate_runtime::clock::Clock;

use crate::flags::invalid;

const SESSIONS: &str = "Sessions";
/// Maximum length of a role chain. Each role costs one call before the first session.
const MAX_CHAIN_LENGTH: usize = 4;

/// Flags about calls to STS.
#[derive(Debug, Args)]
pub(crate) struct StsFlags {
    /// Call the regional STS endpoint. false: call the global endpoint, if the partition has one [default: true]
    #[arg(long, env = "ROLEGATE_USE_REGIONAL_STS_ENDPOINT", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set, value_name = "BOOL", hide_possible_values = true, help_heading = SESSIONS)]
    use_regional_sts_endpoint: Option<bool>,
    /// Maximum number of concurrent calls to STS. 0: unlimited
    #[arg(long, alias = "fetchers", value_name = "N", env = "ROLEGATE_STS_CALLS_IN_FLIGHT", default_value = "64", help_heading = SESSIONS)]
    sts_calls_in_flight: usize,
    /// Maximum number of calls to STS per second, out of the account's quota of 600. 0: limited only by STS throttling [default: 200 for a broker, 0 for an agent]
    #[arg(long, value_name = "N", env = "ROLEGATE_STS_CALLS_PER_SECOND", help_heading = SESSIONS)]
    sts_calls_per_second: Option<u32>,
    /// Role to assume before calling STS for pods, as an ARN. Repeat to chain roles
    #[arg(long, alias = "assume-role-arn", value_name = "ARN", env = "ROLEGATE_ASSUME_ROLE", value_delimiter = ',', help_heading = SESSIONS)]
    assume_role: Vec<String>,
    /// External ID for the --assume-role in the same position. Empty: none
    #[arg(long, value_name = "ID", env = "ROLEGATE_ASSUME_ROLE_EXTERNAL_ID", help_heading = SESSIONS)]
    assume_role_external_id: Vec<String>,
}

impl StsFlags {
    /// Returns the engine's options with the limits that the flags set.
    pub(crate) fn engine(&self, of: fn(usize) -> EngineOptions) -> EngineOptions {
        let options = of(self.sts_calls_in_flight);
        EngineOptions {
            calls_per_second: self
                .sts_calls_per_second
                .unwrap_or(options.calls_per_second),
            ..options
        }
    }

    /// Returns the options of the STS client.
    ///
    /// # Errors
    /// Returns a usage error for an invalid role or external ID.
    pub(crate) fn options(&self, clock: Clock) -> anyhow::Result<StsOptions> {
        let endpoints = std::env::var("AWS_STS_REGIONAL_ENDPOINTS");
        let regional = self
            .use_regional_sts_endpoint
            .unwrap_or(endpoints.as_deref() != Ok("legacy"));
        Ok(StsOptions {
            regional,
            chain: self.chain()?,
            clock,
            ..StsOptions::default()
        })
    }

    fn chain(&self) -> anyhow::Result<Vec<IntermediateRole>> {
        let arns = self.assume_role.iter().filter(|arn| !arn.is_empty());
        let mut roles = arns
            .map(|arn| {
                let role = RoleArn::parse(arn)
                    .map_err(|error| invalid(format!("--assume-role: {error}")))?;
                Ok(IntermediateRole {
                    role,
                    external_id: None,
                })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        if roles.len() > MAX_CHAIN_LENGTH {
            return Err(invalid(format!(
                "--assume-role: a chain has at most {MAX_CHAIN_LENGTH} roles"
            )));
        }
        let ids = self.assume_role_external_id.as_slice();
        if ids.len() > roles.len() && ids != [""] {
            return Err(invalid(
                "--assume-role-external-id: more external IDs than roles in --assume-role",
            ));
        }
        for (role, id) in roles.iter_mut().zip(ids) {
            if !id.is_empty() && !is_external_id(id) {
                return Err(invalid(
                    "--assume-role-external-id: must be 2 to 1224 letters, digits and _+=,.@:/-",
                ));
            }
            role.external_id = (!id.is_empty()).then(|| id.as_str().into());
        }
        Ok(roles)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(args_override_self = true)]
    struct Flags {
        #[command(flatten)]
        sts: StsFlags,
    }

    fn chain(arguments: &[&str]) -> anyhow::Result<Vec<(String, Option<String>)>> {
        let arguments = std::iter::once("test").chain(arguments.iter().copied());
        let flags = Flags::try_parse_from(arguments)?;
        let links = flags.sts.options(Clock::system())?.chain.into_iter();
        let links = links.map(|link| {
            let id = link.external_id.map(|id| id.to_string());
            (link.role.name().to_owned(), id)
        });
        Ok(links.collect())
    }

    #[test]
    fn a_chain_is_given_role_by_role() {
        let one = "--assume-role=arn:aws:iam::123456789012:role/team/one";
        let two = "--assume-role=arn:aws:iam::123456789012:role/two";
        assert_eq!(chain(&[]).unwrap(), []);
        assert_eq!(chain(&["--assume-role="]).unwrap(), []);
        assert_eq!(chain(&[one]).unwrap(), [("one".to_owned(), None)]);
        let both = [
            one,
            two,
            "--assume-role-external-id=",
            "--assume-role-external-id=hub",
        ];
        let id = Some("hub".to_owned());
        assert_eq!(
            chain(&both).unwrap(),
            [("one".to_owned(), None), ("two".to_owned(), id)]
        );
        for wrong in [
            &["--assume-role=reader"][..],
            &["--assume-role-external-id=hub"],
            &[one, "--assume-role-external-id=a b"],
            &[one, one, one, one, one],
        ] {
            assert!(chain(wrong).is_err(), "{wrong:?}");
        }
    }
}
