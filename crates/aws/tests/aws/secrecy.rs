//! Logs contain no secrets.

use std::fmt::{Debug, Display};

use http::Method;
use rolegate_aws::identity::discover;
use rolegate_aws::imds::Imds;
use rolegate_aws::sts::Sts;
use rolegate_devkit as devkit;

use super::ANY;
use super::raw::{Raw, answer};
use super::sts::{SECRET, TOKEN, key, options, service};

#[track_caller]
fn assert_contains_no(secrets: &[&str], shown: &[&dyn Debug]) {
    for value in shown {
        let text = format!("{value:?} {value:#?}");
        for secret in secrets {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

#[tokio::test]
async fn sessions_and_our_own_credentials() {
    let service = service("arn:aws:iam::123456789012:user/rolegate").await;
    let options = options(&service.url());
    let sts = Sts::new(options.clone());
    let session = sts.assume_role(&key()).await.unwrap();
    let secrets = [
        SECRET,
        TOKEN,
        session.secret_access_key(),
        session.session_token(),
    ];
    assert_contains_no(&secrets, &[&options, &sts, &session]);
}

#[tokio::test]
async fn refusals_that_quote_the_request() {
    let service = service("arn:aws:iam::123456789012:user/rolegate").await;
    let sts = Sts::new(options(&service.url()));
    for code in [
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "ExpiredToken",
        "AuthFailure",
    ] {
        let quoted = format!("'POST / x-amz-security-token:{TOKEN}' with {SECRET}");
        service.fail_with(Some(devkit::StsFailure::new(403, code, quoted)));
        let failure = sts.assume_role(&key()).await.unwrap_err();
        let shown: &dyn Display = &failure;
        assert_contains_no(&[SECRET, TOKEN], &[&failure, &shown.to_string()]);
    }
}

#[tokio::test]
async fn calls_that_can_not_be_made() {
    for url in ["start:", "http://", "ftp://127.0.0.1:1"] {
        let failure = Sts::new(options(url))
            .assume_role(&key())
            .await
            .unwrap_err();
        assert!(failure.message.contains("cannot "), "{failure}");
        let external_id = key().external_id.unwrap();
        assert_contains_no(&[SECRET, TOKEN, &external_id], &[&failure]);
    }
}

#[tokio::test]
async fn our_metadata_token_and_the_nodes_credentials() {
    let metadata = devkit::Imds::start(ANY, devkit::ImdsOptions::default())
        .await
        .unwrap();
    let imds = Imds::new(&metadata.url()).unwrap();
    let sts = service("arn:aws:iam::123456789012:user/rolegate").await;
    let found = discover(&Sts::new(options(&sts.url())), &imds).await;
    let answer = imds
        .forward(&Method::GET, "/latest/user-data")
        .await
        .unwrap();
    let token = metadata.requests().pop().unwrap().headers["x-aws-ec2-metadata-token"].clone();
    let secrets = [token.to_str().unwrap(), devkit::NODE_SECRET_MARKER];
    assert_contains_no(&secrets, &[&imds, &found, &answer]);
}

#[tokio::test]
async fn a_token_that_is_refused_or_malformed() {
    for token in ["secret-token", "secret\u{7f}-token"] {
        let service = Raw::start(move |head| {
            if head.starts_with("put") {
                answer(200, "", token)
            } else {
                answer(401, "", "")
            }
        })
        .await;
        let imds = Imds::new(&service.addr.to_string()).unwrap();
        let error = imds.get_text("/latest/meta-data/").await.unwrap_err();
        assert_contains_no(&["secret"], &[&imds, &error, &error.to_string()]);
    }
}
