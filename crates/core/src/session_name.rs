//! `RoleSessionName`, which identifies the user of a role in CloudTrail.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::workload::Workload;

/// Maximum length in STS, in characters.
const MAX: usize = 64;
/// Minimum length in STS, in characters.
const MIN: usize = 2;
/// Number of hexadecimal digits of the hash at the end of a shortened name: 80 bits.
const HASH: usize = 20;

/// The set of pods that share a session of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionScope {
    /// All pods of a service account. The session is named `NAMESPACE.SERVICEACCOUNT`.
    #[default]
    Workload,
    /// Each pod has its own session, named `NAMESPACE.POD`, for full attribution in CloudTrail.
    Pod,
    /// All pods of the role. The session is named `rolegate`; this needs the fewest calls.
    Role,
}

/// The reason why a requested session name is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionNameError {
    /// The name could be that of another namespace's pods.
    #[error(
        "the session name {0:?} could be that of another namespace: a name with a dot must start \
         with the pod's own namespace"
    )]
    Forged(String),
    /// STS would reject the name.
    #[error("a session name must have at most 64 letters, digits and _+=,.@- characters")]
    Malformed,
}

/// Returns the session name of a workload: the one in its annotation, or one built from its names.
/// A name that is too long is shortened and ends in a hash of the whole, so that different long
/// names stay different.
///
/// # Errors
/// [`SessionNameError`] if the annotation has the form of another namespace's names, or if STS
/// would reject it. It is not changed to fit, since the result could be another workload's name.
pub fn session_name(
    workload: &Workload,
    scope: SessionScope,
) -> Result<Arc<str>, SessionNameError> {
    let own_prefix = format!("{}.", workload.namespace);
    if let Some(requested) = &workload.role_request.session_name {
        let name = pad((**requested).to_owned());
        if name.len() > MAX || !name.chars().all(is_taken) {
            return Err(SessionNameError::Malformed);
        }
        let forged = name.contains('.') && !name.starts_with(&own_prefix);
        return if forged || looks_shortened(requested) {
            Err(SessionNameError::Forged(name))
        } else {
            Ok(name.into())
        };
    }
    Ok(match scope {
        SessionScope::Workload => fit(&format!("{own_prefix}{}", workload.service_account)),
        SessionScope::Pod => fit(&format!("{own_prefix}{}", workload.name)),
        SessionScope::Role => "rolegate".to_owned(),
    }
    .into())
}

/// Returns true if [`fit`] could have shortened a longer text, of any namespace, to this one.
fn looks_shortened(text: &str) -> bool {
    text.len() == MAX
        && text.rsplit_once('-').is_some_and(|(_, hash)| {
            hash.len() == HASH && hash.bytes().all(|b| b.is_ascii_hexdigit())
        })
}

/// Converts a text to a valid `RoleSessionName` or `SourceIdentity` (`[\w+=,.@-]{2,64}`).
pub fn fit(text: &str) -> String {
    let mut name: String = text
        .chars()
        .map(|c| if is_taken(c) { c } else { '-' })
        .collect();
    if name.len() > MAX || name != text {
        // A cryptographic hash, since a tenant who chooses service account names must not find a
        // collision.
        let hash = Sha256::digest(text);
        name.truncate(MAX - HASH - 1);
        name.push('-');
        name.extend(hash.iter().take(HASH / 2).map(|byte| format!("{byte:02x}")));
    }
    pad(name)
}

fn is_taken(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_+=,.@-".contains(c)
}

fn pad(mut name: String) -> String {
    while name.len() < MIN {
        name.push('-');
    }
    name
}

/// FNV-1a, 64 bits. Unlike the standard hasher, it is stable across versions and machines.
pub(crate) fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::pod;
    use proptest::prelude::*;

    #[test]
    fn scopes_name_sessions() {
        let pod = pod(None);
        let name = |scope| session_name(&pod, scope).unwrap().to_string();
        assert_eq!(name(SessionScope::Workload), "default.default");
        assert_eq!(name(SessionScope::Pod), "default.app");
        assert_eq!(name(SessionScope::Role), "rolegate");
    }

    #[test]
    fn a_chosen_name_cannot_pass_for_another_namespace() {
        let mut pod = pod(None);
        let mut chosen = |name: &str| {
            pod.role_request.session_name = Some(name.into());
            session_name(&pod, SessionScope::Workload).map(|name| name.to_string())
        };
        assert_eq!(chosen("billing").unwrap(), "billing");
        assert_eq!(chosen("default.blue").unwrap(), "default.blue");
        assert!(chosen("payments.api").is_err());
        assert!(chosen("payments\u{202e}.api").is_err());
        assert_eq!(chosen("x").unwrap(), "x-");
    }

    #[test]
    fn threat_12_nothing_is_changed_to_pass_for_a_cut_name() {
        // A shortened name has no dot if the namespace's name is long.
        let mut victim = pod(None);
        victim.namespace = "x".repeat(60).into();
        let cut = session_name(&victim, SessionScope::Workload).unwrap();
        assert!(!cut.contains('.') && cut.len() == MAX);
        let mut pod = pod(None);
        let mut chosen = |name: &str| {
            pod.role_request.session_name = Some(name.into());
            session_name(&pod, SessionScope::Workload)
        };
        assert!(matches!(chosen(&cut), Err(SessionNameError::Forged(_))));
        // Rejected whatever the value of the hash.
        for name in [
            "x".repeat(65),
            "x".repeat(60) + " ",
            "a b".into(),
            "\u{e9}".into(),
        ] {
            assert_eq!(chosen(&name), Err(SessionNameError::Malformed), "{name}");
        }
        assert_eq!(&*chosen(&"x".repeat(64)).unwrap(), "x".repeat(64));
    }

    #[test]
    fn long_names_stay_apart() {
        let mut pod = pod(None);
        let mut of_account = |name: String| {
            pod.service_account = name.into();
            session_name(&pod, SessionScope::Workload).unwrap()
        };
        let one = of_account(format!("{}-one", "x".repeat(80)));
        let two = of_account(format!("{}-two", "x".repeat(80)));
        assert_eq!((one.len(), two.len()), (MAX, MAX));
        assert_ne!(one, two);
    }

    proptest! {
        #[test]
        fn every_name_is_one_that_sts_takes(text in ".{0,200}") {
            let name = fit(&text);
            prop_assert!((MIN..=MAX).contains(&name.len()));
            prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b)));
        }
    }

    #[test]
    fn a_name_of_the_greatest_length_stays_as_it_is() {
        assert_eq!(fit(&"x".repeat(MAX)), "x".repeat(MAX));
        let cut = fit(&"x".repeat(MAX + 1));
        assert!(cut.len() == MAX && cut != "x".repeat(MAX), "{cut}");
        assert_eq!(fit("ab"), "ab");
    }
}
