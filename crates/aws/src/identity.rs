//! The AWS environment: the node's role, account, partition and Region, and the role that rolegate
//! itself uses.

use std::time::Duration;

use http::StatusCode;
use rolegate_core::arn::{BaseArn, RoleArn};
use rolegate_core::decision::ReservedRole;
use rolegate_core::session::Failure;
use serde_json::Value;
use tokio::time::timeout;

use crate::error;
use crate::imds::{Imds, ImdsError};
use crate::sts::{CallerIdentity, Sts};

/// Timeout of the detection.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(2);

/// The maximum session duration for role chaining, in seconds.
const CHAINED_SESSION_SECONDS: u32 = 3600;

const ROLE: &str = "/latest/meta-data/iam/security-credentials/";
const INFO: &str = "/latest/meta-data/iam/info";
const DOCUMENT: &str = "/latest/dynamic/instance-identity/document";
const PARTITION: &str = "/latest/meta-data/services/partition";

/// The instance, from its identity document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// 12 digits.
    pub account: String,
    /// Such as `eu-west-1`.
    pub region: String,
    /// Such as `i-0123456789abcdef0`.
    pub id: String,
}

/// The owner of an instance profile, from its ARN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileOwner {
    /// Such as `aws` or `aws-cn`.
    pub partition: String,
    /// 12 digits.
    pub account: String,
}

/// The detected environment. Each part may fail on its own.
#[derive(Debug, Clone)]
pub struct Discovered {
    /// The name of the node's role. `None` if the node has none.
    pub node_role: Result<Option<String>, ImdsError>,
    /// The owner of the node's instance profile. `None` if the node has none.
    pub profile: Result<Option<ProfileOwner>, ImdsError>,
    /// The instance of this process.
    pub instance: Result<Instance, ImdsError>,
    /// The partition reported by the metadata service.
    pub partition: Result<String, ImdsError>,
    /// The identity with which we call AWS.
    pub caller: Result<CallerIdentity, Failure>,
    /// The process's own identity, if there are intermediate roles.
    pub source: Option<CallerIdentity>,
    /// The intermediate roles.
    pub chain: Vec<RoleArn>,
}

/// Queries STS and the metadata service concurrently, for 2 s at most.
pub async fn discover(sts: &Sts, imds: &Imds) -> Discovered {
    let callers = async {
        let source = async {
            match sts.source() {
                Some(source) => source.caller_identity().await.map(Some),
                None => Ok(None),
            }
        };
        let callers = async { tokio::try_join!(Box::pin(sts.caller_identity()), Box::pin(source)) };
        timeout(DISCOVERY_TIMEOUT, callers)
            .await
            .unwrap_or_else(|_| Err(error::timed_out(DISCOVERY_TIMEOUT)))
    };
    let (role, info, document, partition, callers) = tokio::join!(
        text(imds, ROLE),
        text(imds, INFO),
        text(imds, DOCUMENT),
        text(imds, PARTITION),
        callers
    );
    let (caller, source) = match callers {
        Ok((caller, source)) => (Ok(caller), source),
        Err(failure) => (Err(failure), None),
    };
    Discovered {
        node_role: present(role).and_then(|text| text.map(|text| parse_role(&text)).transpose()),
        profile: present(info).and_then(|text| text.map(|text| parse_info(&text)).transpose()),
        instance: document.and_then(|text| parse_document(&text)),
        partition: partition.and_then(|text| parse_partition(&text)),
        caller,
        source,
        chain: sts.chain().iter().map(|link| link.role.clone()).collect(),
    }
}

/// Reports the instance ID, or why it is unknown, now and periodically. Never returns.
pub async fn follow_instance(imds: &Imds, report: impl Fn(Result<String, String>)) {
    const RETRY_INTERVAL: Duration = Duration::from_secs(600);
    const SOON: Duration = Duration::from_secs(10);
    loop {
        let document = text(imds, DOCUMENT).await;
        let instance = document.and_then(|text| parse_document(&text));
        let pause = if instance.is_ok() {
            RETRY_INTERVAL
        } else {
            SOON
        };
        report(match instance {
            Ok(instance) => Ok(instance.id),
            Err(error) => Err(error.to_string()),
        });
        tokio::time::sleep(pause).await;
    }
}

async fn text(imds: &Imds, path: &str) -> Result<String, ImdsError> {
    timeout(DISCOVERY_TIMEOUT, imds.get_text(path))
        .await
        .unwrap_or(Err(ImdsError::TimedOut))
}

/// Converts 404, which means that the value does not exist, to `None`.
fn present(text: Result<String, ImdsError>) -> Result<Option<String>, ImdsError> {
    match text {
        Err(ImdsError::Status(StatusCode::NOT_FOUND)) => Ok(None),
        other => other.map(Some),
    }
}

impl Discovered {
    /// Returns the base ARN of the node's account: by its instance profile, its identity document,
    /// or our own credentials, whichever is known.
    pub fn base_arn(&self) -> Option<BaseArn> {
        let (partition, account) = if let Ok(Some(owner)) = &self.profile {
            (owner.partition.as_str(), owner.account.as_str())
        } else if let Ok(instance) = &self.instance {
            let partition = self.partition.as_deref();
            (
                partition.unwrap_or_else(|_| partition_of(&instance.region)),
                instance.account.as_str(),
            )
        } else {
            let caller = self.caller.as_ref().ok()?;
            (caller.partition()?, caller.account.as_str())
        };
        BaseArn::from_account(partition, account).ok()
    }

    /// Returns the node's Region.
    pub fn region(&self) -> Option<&str> {
        self.instance
            .as_ref()
            .ok()
            .map(|instance| instance.region.as_str())
    }

    /// Returns the maximum duration of our sessions, in seconds: an hour if our own credentials are
    /// a role's session. `None` if each role's own limit applies.
    pub fn max_session_seconds(&self) -> Option<u32> {
        let caller = self.caller.as_ref().ok()?;
        caller.role_name().map(|_| CHAINED_SESSION_SECONDS)
    }

    /// Returns the roles that no pod may have: the node's, the one we call AWS with, and the
    /// intermediate ones.
    pub fn reserved_roles(&self) -> Vec<ReservedRole> {
        let node = self
            .node_role
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .map(|name| ReservedRole {
                account: match (&self.profile, &self.instance) {
                    (Ok(Some(owner)), _) => Some(owner.account.clone()),
                    (_, Ok(instance)) => Some(instance.account.clone()),
                    _ => None,
                },
                name: name.clone(),
            });
        let callers = self.caller.iter().chain(&self.source).filter_map(|caller| {
            Some(ReservedRole {
                account: Some(caller.account.clone()),
                name: caller.role_name()?.to_owned(),
            })
        });
        let between = self.chain.iter().map(|role| ReservedRole {
            account: Some(role.account().to_owned()),
            name: role.name().to_owned(),
        });
        let mut roles: Vec<ReservedRole> = Vec::new();
        for role in node.into_iter().chain(callers).chain(between) {
            if !roles.contains(&role) {
                roles.push(role);
            }
        }
        roles
    }
}

/// Returns the partition of a Region, by its name.
pub fn partition_of(region: &str) -> &'static str {
    const PREFIXES: [(&str, &str); 7] = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("eusc-", "aws-eusc"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("eu-isoe-", "aws-iso-e"),
        ("us-isof-", "aws-iso-f"),
    ];
    PREFIXES
        .iter()
        .find(|(prefix, _)| region.starts_with(prefix))
        .map_or("aws", |(_, partition)| partition)
}

/// Parses the role list of a profile, which has one role on a line.
fn parse_role(text: &str) -> Result<String, ImdsError> {
    let name = text.lines().next().unwrap_or_default().trim();
    // A base ARN without a path is completed by a name.
    BaseArn::from_account("aws", "000000000000")
        .ok()
        .and_then(|base| RoleArn::parse(&format!("{}{name}", base.as_str())).ok())
        .filter(|role| role.resource() == role.name())
        .map(|role| role.name().to_owned())
        .ok_or(ImdsError::Malformed("a role's name"))
}

fn parse_info(text: &str) -> Result<ProfileOwner, ImdsError> {
    let info = json(text);
    let arn = field(&info, "InstanceProfileArn");
    let owner = arn.and_then(|arn| {
        let (prefix, _) = arn.split_once(":instance-profile/")?;
        let (partition, account) = prefix.strip_prefix("arn:")?.split_once(":iam::")?;
        BaseArn::from_account(partition, account).ok()?;
        Some(ProfileOwner {
            partition: partition.to_owned(),
            account: account.to_owned(),
        })
    });
    owner.ok_or(ImdsError::Malformed("an instance profile"))
}

fn parse_document(text: &str) -> Result<Instance, ImdsError> {
    let document = json(text);
    let word = |name| {
        field(&document, name)
            .filter(|word| is_word(word))
            .map(str::to_owned)
            .ok_or(ImdsError::Malformed("an instance identity document"))
    };
    Ok(Instance {
        account: word("accountId")?,
        region: word("region")?,
        id: word("instanceId")?,
    })
}

fn parse_partition(text: &str) -> Result<String, ImdsError> {
    let name = text.trim();
    (name.starts_with("aws") && is_word(name))
        .then(|| name.to_owned())
        .ok_or(ImdsError::Malformed("a partition"))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn field<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}

fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Discovered {
        Discovered {
            node_role: Err(ImdsError::TimedOut),
            profile: Err(ImdsError::TimedOut),
            instance: Err(ImdsError::TimedOut),
            partition: Err(ImdsError::TimedOut),
            caller: Err(error::timed_out(DISCOVERY_TIMEOUT)),
            source: None,
            chain: Vec::new(),
        }
    }

    fn caller(arn: &str) -> CallerIdentity {
        CallerIdentity {
            arn: arn.into(),
            account: "210987654321".into(),
        }
    }

    #[test]
    fn each_region_is_in_its_partition() {
        for (region, partition) in [
            ("eu-west-1", "aws"),
            ("us-east-1", "aws"),
            ("cn-north-1", "aws-cn"),
            ("us-gov-west-1", "aws-us-gov"),
            ("us-iso-east-1", "aws-iso"),
            ("us-isob-east-1", "aws-iso-b"),
            ("eu-isoe-west-1", "aws-iso-e"),
            ("us-isof-south-1", "aws-iso-f"),
            ("eusc-de-east-1", "aws-eusc"),
        ] {
            assert_eq!(partition_of(region), partition, "{region}");
        }
    }

    #[test]
    fn invalid_metadata_is_rejected() {
        assert_eq!(parse_role("node-role\n").unwrap(), "node-role");
        for text in ["", "\n", "a/b", "a b", "<html>", "../x", &"x".repeat(65)] {
            assert!(parse_role(text).is_err(), "{text:?}");
        }
        let info = r#"{"InstanceProfileArn":"arn:aws-cn:iam::123456789012:instance-profile/p/q"}"#;
        assert_eq!(
            parse_info(info).unwrap(),
            ProfileOwner {
                partition: "aws-cn".into(),
                account: "123456789012".into()
            }
        );
        for text in [
            "",
            "{}",
            "[]",
            r#"{"InstanceProfileArn":"arn:aws:iam::1:instance-profile/p"}"#,
        ] {
            assert!(parse_info(text).is_err(), "{text:?}");
        }
        let document = r#"{"accountId":"123456789012","region":"eu-west-1","instanceId":"i-0"}"#;
        assert_eq!(parse_document(document).unwrap().region, "eu-west-1");
        for text in [
            "",
            "{}",
            r#"{"accountId":"1","region":"a b","instanceId":"i"}"#,
        ] {
            assert!(parse_document(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_partition("aws-eusc\n").unwrap(), "aws-eusc");
        assert!(parse_partition("<html>").is_err());
    }

    #[test]
    fn the_base_arn_comes_from_the_first_that_knows() {
        let base = |found: &Discovered| found.base_arn().map(|base| base.as_str().to_owned());
        let mut found = nothing();
        assert_eq!(base(&found), None);
        found.caller = Ok(caller(
            "arn:aws-us-gov:sts::210987654321:assumed-role/agent/x",
        ));
        assert_eq!(
            base(&found).unwrap(),
            "arn:aws-us-gov:iam::210987654321:role/"
        );
        found.instance = Ok(Instance {
            account: "111111111111".into(),
            region: "cn-north-1".into(),
            id: "i-0".into(),
        });
        assert_eq!(base(&found).unwrap(), "arn:aws-cn:iam::111111111111:role/");
        found.partition = Ok("aws-iso".into());
        assert_eq!(base(&found).unwrap(), "arn:aws-iso:iam::111111111111:role/");
        found.profile = Ok(Some(ProfileOwner {
            partition: "aws".into(),
            account: "222222222222".into(),
        }));
        assert_eq!(base(&found).unwrap(), "arn:aws:iam::222222222222:role/");
    }

    #[test]
    fn our_own_roles_are_the_nodes_and_the_callers() {
        let own = |account: Option<&str>, name: &str| ReservedRole {
            account: account.map(str::to_owned),
            name: name.into(),
        };
        let mut found = nothing();
        assert_eq!(found.reserved_roles(), []);
        found.node_role = Ok(Some("node".into()));
        assert_eq!(found.reserved_roles(), [own(None, "node")]);
        found.profile = Ok(Some(ProfileOwner {
            partition: "aws".into(),
            account: "210987654321".into(),
        }));
        found.caller = Ok(caller(
            "arn:aws:sts::210987654321:assumed-role/agent/session",
        ));
        assert_eq!(
            found.reserved_roles(),
            [
                own(Some("210987654321"), "node"),
                own(Some("210987654321"), "agent")
            ]
        );
        found.caller = Ok(caller("arn:aws:sts::210987654321:assumed-role/node/i-0"));
        assert_eq!(found.reserved_roles(), [own(Some("210987654321"), "node")]);
        found.caller = Ok(caller("arn:aws:iam::210987654321:user/admin"));
        assert_eq!(found.reserved_roles(), [own(Some("210987654321"), "node")]);
    }
}
