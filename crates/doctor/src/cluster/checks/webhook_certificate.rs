//! The authorities of the webhook's registration are valid and do not expire soon.
//!
//! The certificate itself is in a Secret with its key, which this program does not read. The
//! controller issues it together with an authority that expires at the same time.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use rolegate_runtime::tls::expirations;

use super::super::facts::ClusterFacts;
use crate::check::{Finding, Outcome};
use crate::objects::Webhook;
use crate::reading::Unread;

/// The controller renews certificates 30 days before they expire.
const RENEWAL_IS_LATE: SignedDuration = SignedDuration::from_hours(25 * 24);

pub(in crate::cluster) fn check(facts: &ClusterFacts) -> Result<Outcome, Unread> {
    let Some(webhook) = facts.webhook.as_ref()? else {
        return Ok(Outcome::ok("no webhook is registered"));
    };
    let mut findings = Vec::new();
    let mut ends = Vec::new();
    for one in &webhook.webhooks {
        match end(one) {
            Ok(end) => ends.push(end),
            Err(why) => findings.push(Finding::problem(format!("webhook {}: {why}", one.name))),
        }
    }
    let end = ends.into_iter().min();
    findings.extend(end.and_then(|end| expiring(end, facts.now)));
    let findings = findings.into_iter().map(|finding| {
        finding.advice(
            "the controller, or cert-manager, renews it: see the checks controller and leader",
        )
    });
    Ok(Outcome::of(
        match end {
            Some(end) => format!("valid until {}", end.strftime("%Y-%m-%d")),
            None => "the API server cannot verify the webhook".to_owned(),
        },
        findings.collect(),
    ))
}

fn expiring(end: Timestamp, now: Timestamp) -> Option<Finding> {
    let left = end.duration_since(now);
    if left <= SignedDuration::ZERO {
        return Some(Finding::problem(format!(
            "the authorities in the webhook's registration expired at {end}: the API server cannot call the webhook"
        )));
    }
    (left < RENEWAL_IS_LATE).then(|| {
        let days = left.as_hours() / 24;
        Finding::warning(format!(
            "the authorities in the webhook's registration expire in {days} days and were not renewed"
        ))
    })
}

/// Returns the expiry of the authority that expires last.
fn end(webhook: &Webhook) -> Result<Timestamp, String> {
    let bundle = &webhook.client_config.ca_bundle;
    if bundle.is_empty() {
        return Err("its registration has no CA bundle".into());
    }
    let pem = STANDARD.decode(bundle).ok();
    let end = pem.and_then(|pem| expirations(&pem).max());
    end.ok_or_else(|| "its CA bundle has no certificate".into())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::super::webhook::tests::registered;
    use super::*;
    use crate::check::Status;
    use crate::cluster::facts::tests::healthy;

    fn bundle(year: i32, month: u8, day: u8) -> String {
        let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, month, day);
        let key = KeyPair::generate().unwrap();
        STANDARD.encode(params.self_signed(&key).unwrap().pem())
    }

    #[test]
    fn the_bundle_must_be_valid_for_some_time() {
        let mut facts = healthy();
        assert_eq!(check(&facts).unwrap().status(), Status::Ok);
        for (bundle, expected) in [
            (bundle(2026, 3, 1), Status::Ok),
            (bundle(2026, 1, 10), Status::Warning),
            (bundle(2025, 12, 1), Status::Problem),
            (String::new(), Status::Problem),
            ("eA==".to_owned(), Status::Problem),
            ("!".to_owned(), Status::Problem),
        ] {
            facts.webhook = Ok(Some(registered("Fail", &bundle)));
            let outcome = check(&facts).unwrap();
            assert_eq!(outcome.status(), expected, "{outcome:?}");
        }
    }
}
