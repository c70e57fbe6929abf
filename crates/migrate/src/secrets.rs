//! Recognises secrets among values, so that they are never repeated.

/// Parts of the names of environment variables that hold secrets.
const SECRET_WORDS: [&str; 8] = [
    "ACCESS_KEY",
    "SECRET",
    "TOKEN",
    "PASSWORD",
    "PASSWD",
    "CREDENTIAL",
    "PRIVATE",
    "API_KEY",
];
/// Ends of the names of variables that only refer to a secret.
const REFERENCES: [&str; 5] = ["_FILE", "_PATH", "_URI", "_URL", "_DIR"];

/// Returns whether an environment variable may hold a secret.
pub(crate) fn is_secret(name: &str, value: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let is_reference = REFERENCES.iter().any(|end| name.ends_with(end));
    let is_named = SECRET_WORDS.iter().any(|word| name.contains(word));
    (is_named && !is_reference) || has_password(value)
}

/// Returns whether a text is a URL with user information, such as that of a proxy.
fn has_password(text: &str) -> bool {
    let Some((_, rest)) = text.split_once("://") else {
        return false;
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_recognised_by_name_or_url() {
        for (name, value, expected) in [
            ("AWS_SECRET_ACCESS_KEY", "x", true),
            ("aws_access_key_id", "x", true),
            ("AWS_SESSION_TOKEN", "x", true),
            ("HTTPS_PROXY", "http://user:hidden@proxy:8080/", true),
            ("HTTPS_PROXY", "http://proxy:8080/a@b", false),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token", false),
            ("AWS_REGION", "eu-west-1", false),
        ] {
            assert_eq!(is_secret(name, value), expected, "{name}={value}");
        }
    }
}
