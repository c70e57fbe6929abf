//! Messages with secrets: `Debug` omits the secrets, and they are wiped when dropped.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{kiam, v1};

macro_rules! wiped {
    ($message:ty: $($secret:ident),+) => {
        impl Drop for $message {
            fn drop(&mut self) {
                $(self.$secret.zeroize();)+
            }
        }

        impl ZeroizeOnDrop for $message {}
    };
}

wiped!(v1::Hello: token);
wiped!(v1::Reauthenticate: token);
wiped!(v1::Credentials: secret_access_key, session_token);
wiped!(kiam::Credentials: secret_access_key, token);

impl fmt::Debug for v1::Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello")
            .field("node", &self.node)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::Reauthenticate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .field("expires_at_ms", &self.expires_at_ms)
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
    use zeroize::ZeroizeOnDrop;

    use crate::{kiam, v1};

    #[test]
    fn rule_06_messages_are_wiped() {
        fn wiped<T: ZeroizeOnDrop>() {}
        wiped::<v1::Hello>();
        wiped::<v1::Reauthenticate>();
        wiped::<v1::Credentials>();
        wiped::<kiam::Credentials>();
    }

    #[test]
    fn rule_06_messages_do_not_show_their_secrets() {
        let secret = || "very-secret".to_owned();
        let mut credentials = v1::Credentials::default();
        credentials.secret_access_key = secret();
        credentials.session_token = secret();
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
        let mut hello = v1::Hello::default();
        hello.token = secret();
        let proof = v1::Reauthenticate { token: secret() };
        let mut theirs = kiam::Credentials::default();
        theirs.secret_access_key = secret();
        theirs.token = secret();
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
