//! Token audiences that AWS accepts in exchange for credentials, as a function and as CEL. The
//! validator, the match conditions of the webhook configuration and the exported policies share
//! them.

use std::collections::BTreeSet;

use rolegate_core::config::Audience;

/// Prefixes of STS host names, all of which contain [`STS_DOMAIN`]: in every partition and region.
const STS_PREFIXES: [&str; 2] = ["sts.", "sts-fips."];
const STS_DOMAIN: &str = "amazonaws.";
/// Prefixes of AWS's other audiences: EKS Pod Identity, and the default of kOps.
const OTHER_PREFIXES: [&str; 2] = ["pods.eks.amazonaws.", "amazonaws."];
/// The default audience of OpenShift on AWS.
const OPENSHIFT: &str = "openshift";

/// Returns `true` if AWS may accept a token for this audience in exchange for credentials: it is a
/// known one, or in `others`, the client IDs of the user's own providers. IAM compares client IDs
/// verbatim. Ignoring case, blanks and a scheme here only denies tokens that IAM would reject as
/// well.
pub(crate) fn is_for_aws(audience: &str, others: &BTreeSet<Audience>) -> bool {
    let audience = Audience::new(audience);
    let text = audience.as_str();
    let host = text.split_once("://").map_or(text, |(_, host)| host);
    let is_sts =
        STS_PREFIXES.iter().any(|start| host.starts_with(start)) && host.contains(STS_DOMAIN);
    is_sts
        || OTHER_PREFIXES.iter().any(|start| host.starts_with(start))
        || text == OPENSHIFT
        || others.contains(&audience)
}

/// Returns `is_for_aws` as CEL. `audience` is a CEL expression of type string.
pub fn cel(audience: &str, others: &BTreeSet<Audience>) -> String {
    let known = [OPENSHIFT].into_iter();
    let listed: Vec<_> = known.chain(others.iter().map(Audience::as_str)).collect();
    let starts = |starts: &[&str]| {
        let starts = starts.iter().map(|start| {
            let start = serde_json::Value::from(*start);
            format!("h.startsWith({start})")
        });
        starts.collect::<Vec<_>>().join(" || ")
    };
    format!(
        "[{audience}.lowerAscii().trim()].exists(l, l in {listed} || [l.contains(\"://\") ? \
         l.substring(l.indexOf(\"://\") + 3) : l].exists(h, ({sts}) && h.contains({domain}) || {others}))",
        listed = serde_json::Value::from(listed),
        sts = starts(&STS_PREFIXES),
        domain = serde_json::Value::from(STS_DOMAIN),
        others = starts(&OTHER_PREFIXES),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threat_31_audiences_of_aws_and_of_providers_in_iam() {
        let none = BTreeSet::new();
        for audience in [
            "sts.amazonaws.com",
            "STS.amazonaws.com",
            "https://sts.amazonaws.com/",
            "sts.eu-west-1.amazonaws.com",
            "sts.cn-north-1.amazonaws.com.cn",
            "sts-fips.us-east-1.amazonaws.com",
            "sts.eusc-de-east-1.amazonaws.eu",
            "pods.eks.amazonaws.com",
            "amazonaws.com",
            "amazonaws.com.cn",
            "https://amazonaws.com",
            "openshift",
            "OpenShift",
            " openshift\n",
        ] {
            assert!(is_for_aws(audience, &none), "{audience:?}");
        }
        let others = [" Mine.example/Audience\n", "https://own.example"];
        let others: BTreeSet<_> = others.map(Audience::new).into();
        for audience in [
            "mine.example/audience",
            "MINE.example/audience ",
            "https://own.example",
        ] {
            assert!(is_for_aws(audience, &others), "{audience:?}");
            assert!(!is_for_aws(audience, &none), "{audience:?}");
        }
        for audience in [
            "",
            " ",
            "vault",
            "s3.amazonaws.com",
            "notamazonaws.com",
            "sts.example.com",
            "openshift.example.com",
            "https://openshift",
            "own.example",
            "https://kubernetes.default.svc",
        ] {
            assert!(!is_for_aws(audience, &others), "{audience:?}");
        }
    }

    #[test]
    fn threat_31_the_default_audience_counts_where_it_is_listed() {
        assert!(!is_for_aws("", &BTreeSet::new()));
        let listed = [Audience::new("")].into();
        assert!(is_for_aws("", &listed));
        assert!(!is_for_aws("vault", &listed));
    }

    #[test]
    fn audiences_cannot_leave_their_quotes() {
        let others = [Audience::new("a\"] || true || [\"")].into();
        let cel = cel("x", &others);
        assert!(
            cel.contains(r#"l in ["openshift","a\"] || true || [\""]"#),
            "{cel}"
        );
    }
}
