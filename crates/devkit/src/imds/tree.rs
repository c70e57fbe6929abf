//! The content of the metadata service, as a tree of paths.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use percent_encoding::percent_decode_str;

use super::{
    ImdsOptions, NODE_ACCESS_KEY_ID, NODE_SECRET_ACCESS_KEY, NODE_SECRET_MARKER, NODE_SESSION_TOKEN,
};
use crate::ids;

pub(super) const INSTANCE_ID: &str = "i-0de0de0de0de0de0d";
const ADDRESS: &str = "10.0.0.10";
const AMI_ID: &str = "ami-0de0de0de0de0de0d";
const INSTANCE_TYPE: &str = "m5.large";
const MAC: &str = "02:de:00:00:00:0a";
/// Validity of credentials. They seem to be renewed each hour, long before they expire.
const CREDENTIAL_LIFE: SignedDuration = SignedDuration::from_hours(6);
/// Versions that `GET /` lists. Any other date is valid too.
const VERSIONS: &str = "1.0\n2021-07-15\n2022-09-24\n2024-04-11\nlatest";

#[derive(Debug)]
enum Leaf {
    Text(String),
    /// Created for each response, since its times advance.
    Credentials,
}

#[derive(Debug)]
pub(super) struct Tree {
    leaves: BTreeMap<String, Leaf>,
}

/// The content at a path.
pub(super) enum Found {
    Text(String),
    Nothing,
}

/// Splits a path into segments leniently: decoded, without empty ones, with dot segments resolved.
pub(super) fn segments(path: &str) -> Vec<String> {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let mut segments = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            name => segments.push(name.to_owned()),
        }
    }
    segments
}

impl Tree {
    pub(super) fn new(options: &ImdsOptions) -> Self {
        let ImdsOptions {
            account,
            region,
            partition,
            ..
        } = options;
        let zone = format!("{region}a");
        let host = format!("ip-10-0-0-10.{region}.compute.internal");
        let texts = [
            (
                "dynamic/instance-identity/document",
                identity_document(account, region, &zone),
            ),
            ("dynamic/instance-identity/pkcs7", NODE_SECRET_MARKER.into()),
            (
                "dynamic/instance-identity/rsa2048",
                NODE_SECRET_MARKER.into(),
            ),
            (
                "dynamic/instance-identity/signature",
                NODE_SECRET_MARKER.into(),
            ),
            ("meta-data/ami-id", AMI_ID.into()),
            ("meta-data/hostname", host.clone()),
            (
                "meta-data/identity-credentials/ec2/info",
                identity_info(account),
            ),
            ("meta-data/instance-id", INSTANCE_ID.into()),
            ("meta-data/instance-type", INSTANCE_TYPE.into()),
            ("meta-data/local-hostname", host),
            ("meta-data/local-ipv4", ADDRESS.into()),
            ("meta-data/mac", MAC.into()),
            ("meta-data/placement/availability-zone", zone),
            (
                "meta-data/placement/availability-zone-id",
                "dev1-az1".into(),
            ),
            ("meta-data/placement/region", region.clone()),
            ("meta-data/services/domain", domain(partition).into()),
            ("meta-data/services/partition", partition.clone()),
            (
                "user-data",
                format!("#!/bin/sh\n/etc/eks/bootstrap.sh --token {NODE_SECRET_MARKER}\n"),
            ),
        ];
        let mut leaves: BTreeMap<_, _> = texts
            .map(|(path, text)| (path.to_owned(), Leaf::Text(text)))
            .into();
        leaves.insert(
            "meta-data/identity-credentials/ec2/security-credentials/ec2-instance".into(),
            Leaf::Credentials,
        );
        if let Some(role) = &options.node_role {
            let info = spaced(&[
                ("Code", Some("Success")),
                ("LastUpdated", Some(&time(Timestamp::now()))),
                (
                    "InstanceProfileArn",
                    Some(&format!(
                        "arn:{partition}:iam::{account}:instance-profile/{role}"
                    )),
                ),
                ("InstanceProfileId", Some(&ids::unique_id("AIPA", role))),
            ]);
            leaves.insert("meta-data/iam/info".into(), Leaf::Text(info));
            leaves.insert(
                format!("meta-data/iam/security-credentials/{role}"),
                Leaf::Credentials,
            );
        }
        Self { leaves }
    }

    pub(super) fn find(&self, path: &[String]) -> Found {
        let Some((version, rest)) = path.split_first() else {
            return Found::Text(VERSIONS.into());
        };
        if !is_version(version) {
            return Found::Nothing;
        }
        let rest = rest.join("/");
        match self.leaves.get(&rest) {
            Some(Leaf::Text(text)) => Found::Text(text.clone()),
            Some(Leaf::Credentials) => Found::Text(credentials()),
            None => self.list(&rest),
        }
    }

    /// Returns the names in a folder. Those of folders end in a slash.
    fn list(&self, folder: &str) -> Found {
        let prefix = if folder.is_empty() {
            String::new()
        } else {
            format!("{folder}/")
        };
        let names: BTreeSet<_> = self
            .leaves
            .keys()
            .filter_map(|path| path.strip_prefix(&prefix))
            .map(|below| match below.split_once('/') {
                Some((name, _)) => format!("{name}/"),
                None => below.to_owned(),
            })
            .collect();
        if names.is_empty() {
            return Found::Nothing;
        }
        Found::Text(names.into_iter().collect::<Vec<_>>().join("\n"))
    }
}

/// Matches `latest`, `1.0` or a date.
fn is_version(segment: &str) -> bool {
    let is_date = || {
        segment.len() == 10
            && segment.bytes().enumerate().all(|(at, byte)| match at {
                4 | 7 => byte == b'-',
                _ => byte.is_ascii_digit(),
            })
    };
    matches!(segment, "latest" | "1.0") || is_date()
}

fn domain(partition: &str) -> &'static str {
    match partition {
        "aws-cn" => "amazonaws.com.cn",
        "aws-eusc" => "amazonaws.eu",
        "aws-iso" => "c2s.ic.gov",
        "aws-iso-b" => "sc2s.sgov.gov",
        "aws-iso-e" => "cloud.adc-e.uk",
        "aws-iso-f" => "csp.hci.ic.gov",
        _ => "amazonaws.com",
    }
}

fn credentials() -> String {
    let now = Timestamp::now();
    spaced(&[
        ("Code", Some("Success")),
        ("LastUpdated", Some(&time(now))),
        ("Type", Some("AWS-HMAC")),
        ("AccessKeyId", Some(NODE_ACCESS_KEY_ID)),
        ("SecretAccessKey", Some(NODE_SECRET_ACCESS_KEY)),
        ("Token", Some(NODE_SESSION_TOKEN)),
        ("Expiration", Some(&time(now + CREDENTIAL_LIFE))),
    ])
}

fn identity_info(account: &str) -> String {
    spaced(&[
        ("Code", Some("Success")),
        ("LastUpdated", Some(&time(Timestamp::now()))),
        ("AccountId", Some(account)),
    ])
}

fn identity_document(account: &str, region: &str, zone: &str) -> String {
    spaced(&[
        ("accountId", Some(account)),
        ("architecture", Some("x86_64")),
        ("availabilityZone", Some(zone)),
        ("billingProducts", None),
        ("devpayProductCodes", None),
        ("marketplaceProductCodes", None),
        ("imageId", Some(AMI_ID)),
        ("instanceId", Some(INSTANCE_ID)),
        ("instanceType", Some(INSTANCE_TYPE)),
        ("kernelId", None),
        ("pendingTime", Some(&time(Timestamp::now()))),
        ("privateIp", Some(ADDRESS)),
        ("ramdiskId", None),
        ("region", Some(region)),
        ("version", Some("2017-09-30")),
    ])
}

/// Formats JSON as the real service does, with a space on both sides of the colon.
fn spaced(fields: &[(&str, Option<&str>)]) -> String {
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!("  \"{name}\" : {}", serde_json::Value::from(*value)))
        .collect();
    format!("{{\n{}\n}}", fields.join(",\n"))
}

fn time(at: Timestamp) -> String {
    format!("{at:.0}")
}
