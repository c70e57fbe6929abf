//! `RoleSessionName`: what CloudTrail shows of who used a role.

use std::sync::Arc;

use crate::workload::Workload;

/// STS's limit, in characters.
const MAX: usize = 64;
/// STS's least length, in characters.
const MIN: usize = 2;

/// Which workloads share one session of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionScope {
    /// All pods of one service account: named `NAMESPACE.SERVICEACCOUNT`.
    #[default]
    Workload,
    /// Each pod has its own: named `NAMESPACE.POD`, full attribution in CloudTrail.
    Pod,
    /// All pods of the role: named `rolegate`, fewest calls.
    Role,
}

/// Why a pod may not have the session name that it asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionNameError {
    /// The name is what another namespace's pods are called.
    #[error(
        "the session name {0:?} would pass for a pod of another namespace: names with a dot start with the pod's own namespace"
    )]
    Forged(String),
}

/// The session name of a workload. What STS does not take is replaced by `-`; what is too long
/// is cut and ends in a hash of the whole, so that two long names stay two.
///
/// # Errors
/// [`SessionNameError::Forged`] when the pod's annotation names it after another namespace.
pub fn session_name(
    workload: &Workload,
    scope: SessionScope,
) -> Result<Arc<str>, SessionNameError> {
    let own_prefix = format!("{}.", workload.namespace);
    if let Some(wish) = &workload.wish.session_name {
        let name = fit(wish);
        let forged = name.contains('.') && !name.starts_with(&own_prefix);
        return if forged || looks_cut(wish) {
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

/// Whether a text is what [`fit`] makes of a longer one, which may be anybody's.
fn looks_cut(text: &str) -> bool {
    text.len() == MAX
        && text.rsplit_once('-').is_some_and(|(_, hash)| {
            hash.len() == 12 && hash.bytes().all(|b| b.is_ascii_hexdigit())
        })
}

/// Makes a text a valid `RoleSessionName` or `SourceIdentity` (`[\w+=,.@-]{2,64}`).
pub(crate) fn fit(text: &str) -> String {
    let mut name: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "_+=,.@-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    if name.len() > MAX || name != text {
        let hash = format!("-{:012x}", fnv1a(text) & 0xffff_ffff_ffff);
        name.truncate(MAX - hash.len());
        name.push_str(&hash);
    }
    while name.len() < MIN {
        name.push('-');
    }
    name
}

/// FNV-1a, 64 bits: stable between versions and machines, unlike the standard hasher.
pub(crate) fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::pod;
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
            pod.wish.session_name = Some(name.into());
            session_name(&pod, SessionScope::Workload).map(|name| name.to_string())
        };
        assert_eq!(chosen("billing").unwrap(), "billing");
        assert_eq!(chosen("default.blue").unwrap(), "default.blue");
        assert!(chosen("payments.api").is_err());
        assert!(chosen("payments\u{202e}.api").is_err());
        // A cut name has no dot where the namespace's is long.
        assert!(chosen(&format!("{}-0123456789ab", "x".repeat(51))).is_err());
        assert_ne!(chosen("x").unwrap(), "x");
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
}
