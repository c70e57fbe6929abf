//! Documents of the instance metadata service and of container credentials, with the fields that SDKs
//! read.

use bytes::Bytes;
use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::arn::RoleArn;
use crate::session::Credentials;
use crate::session_name::fnv1a;

/// Formats a time as the metadata service does: `2026-11-22T03:00:00Z`.
pub fn aws_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Returns the credentials document of `iam/security-credentials/ROLE`.
pub fn credentials(credentials: &Credentials) -> Zeroizing<Vec<u8>> {
    let secret_access_key = credentials.secret_access_key();
    let session_token = credentials.session_token();
    // A buffer that grows would leave copies of the secret in memory.
    let size =
        256 + credentials.access_key_id.len() + secret_access_key.len() + session_token.len();
    let mut document = Zeroizing::new(Vec::with_capacity(size));
    let times = (
        aws_time(credentials.validity.not_before),
        aws_time(credentials.validity.not_after),
    );
    for piece in [
        "{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"",
        &times.0,
        "\",\n  \"Type\" : \"AWS-HMAC\",\n  \"AccessKeyId\" : \"",
        &credentials.access_key_id,
        "\",\n  \"SecretAccessKey\" : \"",
        secret_access_key,
        "\",\n  \"Token\" : \"",
        session_token,
        "\",\n  \"Expiration\" : \"",
        &times.1,
        "\"\n}",
    ] {
        document.extend_from_slice(piece.as_bytes());
    }
    debug_assert!(document.len() <= size, "the document grew");
    document
}

/// Maximum size of a container credentials document, in bytes: the AWS Common Runtime, and with it the
/// SDK for C++, reads no more.
pub const MAX_CONTAINER_CREDENTIALS_BYTES: usize = 10_000;

/// Returns the document of a container credentials endpoint, as EKS Pod Identity's.
pub fn container_credentials(role: &RoleArn, credentials: &Credentials) -> Zeroizing<Vec<u8>> {
    let secret_access_key = credentials.secret_access_key();
    let session_token = credentials.session_token();
    // A buffer that grows would leave copies of the secret in memory.
    let size =
        256 + credentials.access_key_id.len() + secret_access_key.len() + session_token.len();
    let mut document = Zeroizing::new(Vec::with_capacity(size));
    let expiration = aws_time(credentials.validity.not_after);
    for piece in [
        "{\"AccessKeyId\":\"",
        &credentials.access_key_id,
        "\",\"SecretAccessKey\":\"",
        secret_access_key,
        "\",\"Token\":\"",
        session_token,
        "\",\"AccountId\":\"",
        role.account(),
        "\",\"Expiration\":\"",
        &expiration,
        "\"}",
    ] {
        document.extend_from_slice(piece.as_bytes());
    }
    debug_assert!(document.len() <= size, "the document grew");
    document
}

/// Returns the `iam/info` document of an instance profile named like the role.
pub fn info(role: &RoleArn, updated: Timestamp) -> Bytes {
    format!(
        "{{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"{}\",\n  \
         \"InstanceProfileArn\" : \"arn:{}:iam::{}:instance-profile/{}\",\n  \
         \"InstanceProfileId\" : \"AIPA{:016X}\"\n}}",
        aws_time(updated),
        role.partition(),
        role.account(),
        role.resource(),
        fnv1a(role.as_str()),
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Validity;

    #[test]
    fn credentials_are_shaped_as_the_real_ones() {
        let validity = Validity {
            not_before: "2026-11-22T02:00:00.25Z".parse().unwrap(),
            not_after: "2026-11-22T03:00:00Z".parse().unwrap(),
        };
        let document = credentials(&Credentials::new(
            "ASIAEXAMPLE",
            "secret/+",
            "token==",
            validity,
        ));
        insta::assert_snapshot!(String::from_utf8_lossy(&document), @r#"
        {
          "Code" : "Success",
          "LastUpdated" : "2026-11-22T02:00:00Z",
          "Type" : "AWS-HMAC",
          "AccessKeyId" : "ASIAEXAMPLE",
          "SecretAccessKey" : "secret/+",
          "Token" : "token==",
          "Expiration" : "2026-11-22T03:00:00Z"
        }
        "#);
        let parsed: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(parsed["Code"], "Success");
    }

    #[test]
    fn no_copy_of_a_secret_is_left_in_a_smaller_buffer() {
        let validity = Validity {
            not_before: "2026-11-22T02:00:00Z".parse().unwrap(),
            not_after: "2026-11-22T03:00:00Z".parse().unwrap(),
        };
        let long = |length| "a".repeat(length);
        for (id, secret, token) in [(20, 40, 1000), (20, 256, 0), (256, 40, 0)] {
            let all = Credentials::new(long(id), &long(secret), &long(token), validity);
            // A buffer that had grown would be larger.
            let document = credentials(&all);
            assert_eq!(document.capacity(), 256 + id + secret + token);
        }
    }

    #[test]
    fn container_credentials_have_the_members_of_eks() {
        let validity = Validity {
            not_before: "2026-11-22T02:00:00.25Z".parse().unwrap(),
            not_after: "2026-11-22T03:00:00Z".parse().unwrap(),
        };
        let role = RoleArn::parse("arn:aws-cn:iam::123456789012:role/team/reader").unwrap();
        let given = Credentials::new("ASIAEXAMPLE", "secret/+", "token==", validity);
        let document = container_credentials(&role, &given);
        let parsed: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(
            parsed,
            serde_json::json!({
                "AccessKeyId": "ASIAEXAMPLE",
                "SecretAccessKey": "secret/+",
                "Token": "token==",
                "AccountId": "123456789012",
                "Expiration": "2026-11-22T03:00:00Z",
            })
        );
        // The longest session token that STS is known to issue.
        let long = Credentials::new(
            "A".repeat(128),
            &"s".repeat(40),
            &"t".repeat(4096),
            validity,
        );
        assert!(container_credentials(&role, &long).len() < MAX_CONTAINER_CREDENTIALS_BYTES);
    }

    #[test]
    fn info_names_the_role_as_a_profile() {
        let role = RoleArn::parse("arn:aws-cn:iam::123456789012:role/team/reader").unwrap();
        let document = info(&role, "2026-11-22T02:00:00Z".parse().unwrap());
        let parsed: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(
            parsed["InstanceProfileArn"],
            "arn:aws-cn:iam::123456789012:instance-profile/team/reader"
        );
        assert_eq!(parsed["InstanceProfileId"].as_str().unwrap().len(), 20);
    }
}
