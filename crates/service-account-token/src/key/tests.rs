//! The signatures of Wycheproof. Its JWS cases are in no package, so its raw signatures of the same
//! algorithms are used: those of ECDSA in the format of JWS (IEEE P1363).

use wycheproof::TestResult;
use wycheproof::{ecdsa, rsa_pkcs1_verify};

use super::*;

fn jwk(members: &serde_json::Value) -> Jwk {
    serde_json::from_value(members.clone()).unwrap()
}

fn check(key: &Key, id: usize, message: &[u8], signature: &[u8], expected: TestResult) -> usize {
    let verified = key.has_signed(message, signature);
    let must = match expected {
        TestResult::Valid => true,
        TestResult::Invalid => false,
        TestResult::Acceptable => return 0,
    };
    assert_eq!(verified, must, "case {id} of {}", key.algorithm());
    1
}

#[test]
fn ecdsa_signatures_of_wycheproof_are_judged_correctly() {
    let mut checked = 0;
    for (name, curve) in [
        (ecdsa::TestName::EcdsaSecp256r1Sha256P1363, "P-256"),
        (ecdsa::TestName::EcdsaSecp384r1Sha384P1363, "P-384"),
        (ecdsa::TestName::EcdsaSecp521r1Sha512P1363, "P-521"),
    ] {
        for group in ecdsa::TestSet::load(name).unwrap().test_groups {
            let point = &group.key.key[1..];
            let (x, y) = point.split_at(point.len() / 2);
            let [x, y] = [x, y].map(|number| URL_SAFE_NO_PAD.encode(number));
            let members = serde_json::json!({"kty": "EC", "crv": curve, "x": x, "y": y});
            let key = Key::from_jwk("k", &jwk(&members)).unwrap();
            for test in group.tests {
                checked += check(&key, test.tc_id, &test.msg, &test.sig, test.result);
            }
        }
    }
    assert!(checked > 500, "{checked}");
}

#[test]
fn rsa_signatures_of_wycheproof_are_judged_correctly() {
    let mut checked = 0;
    for name in [
        rsa_pkcs1_verify::TestName::Rsa2048Sha256,
        rsa_pkcs1_verify::TestName::Rsa3072Sha256,
        rsa_pkcs1_verify::TestName::Rsa4096Sha256,
    ] {
        for group in rsa_pkcs1_verify::TestSet::load(name).unwrap().test_groups {
            let [n, e] = [&group.key.n, &group.key.e].map(|number| URL_SAFE_NO_PAD.encode(number));
            let members = serde_json::json!({"kty": "RSA", "n": n, "e": e});
            let key = Key::from_jwk("k", &jwk(&members)).unwrap();
            for test in group.tests {
                checked += check(&key, test.tc_id, &test.msg, &test.sig, test.result);
            }
        }
    }
    assert!(checked > 500, "{checked}");
}
