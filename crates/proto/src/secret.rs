//! `Debug` of messages that hold secrets: it shows everything else.

use std::fmt;

use crate::{kiam, v1};

impl fmt::Debug for v1::Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello")
            .field("node", &self.node)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .field("until_ms", &self.until_ms)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for kiam::Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::{kiam, v1};

    #[test]
    fn rule_06_messages_do_not_show_their_secrets() {
        let secret = || "very-secret".to_owned();
        let credentials = v1::Credentials {
            document: secret().into(),
            ..v1::Credentials::default()
        };
        let session = v1::Session {
            credentials: Some(credentials),
            ..v1::Session::default()
        };
        let update = v1::ToAgent {
            body: Some(v1::to_agent::Body::Update(v1::Update {
                sessions: vec![session],
                ..v1::Update::default()
            })),
        };
        let hello = v1::Hello {
            token: secret(),
            ..v1::Hello::default()
        };
        let proof = v1::Proof { token: secret() };
        let theirs = kiam::Credentials {
            secret_access_key: secret(),
            token: secret(),
            ..kiam::Credentials::default()
        };
        for text in [
            format!("{update:?}"),
            format!("{hello:?}"),
            format!("{proof:?}"),
            format!("{theirs:?}"),
        ] {
            assert!(!text.contains("very-secret"), "{text}");
        }
    }
}
