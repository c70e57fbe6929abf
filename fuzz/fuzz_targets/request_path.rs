//! For any path that a pod requests, a forwarded path is canonical and never one of the node's
//! credentials.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rolegate_core::metadata::{AllowList, CanonicalPath, Route};

fuzz_target!(|target: &str| {
    let Ok(path) = CanonicalPath::parse(target) else {
        return;
    };
    let text = path.as_str();
    assert_eq!(CanonicalPath::parse(text), Ok(path));
    assert!(!text.contains("//") && !text.contains("/../"));
    match path.route() {
        // Only the name of a role may be percent-encoded, and it must be plain after decoding.
        Route::Credentials(role) => {
            let role = format!("/{role}/");
            assert!(!role.contains("//") && !role.contains("/../") && !role.contains('%'));
        }
        _ => assert!(!text.contains('%')),
    }
    assert!(!text.contains(['?', '#', '\\', ' ', '\r', '\n', '\0']));
    let everything = AllowList::new(&[".*".to_owned()]).expect("a fixed expression");
    if everything.allows(&path) {
        assert_eq!(path.route(), Route::Other);
        let lower = text.to_ascii_lowercase();
        let mut segments = lower.split('/').skip(2);
        let first = segments.next();
        let second = segments.next();
        assert_ne!((first, second), (Some("meta-data"), Some("iam")));
        assert_ne!(
            (first, second),
            (Some("meta-data"), Some("identity-credentials"))
        );
        assert_ne!(first, Some("user-data"));
        assert_ne!(first, Some("api"));
    }
});
