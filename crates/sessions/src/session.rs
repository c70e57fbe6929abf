//! A session and the documents that endpoints render from it.

use std::any::TypeId;
use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;
use rolegate_core::arn::RoleArn;
use rolegate_core::session::Credentials;
use zeroize::Zeroizing;

/// A session, as endpoints serve it.
pub struct Session {
    /// The role that the session assumes.
    pub role: RoleArn,
    /// The credentials, with their validity.
    pub credentials: Credentials,
    documents: Documents,
}

impl Session {
    /// Creates a session of `role`.
    pub fn new(role: RoleArn, credentials: Credentials) -> Self {
        Self {
            role,
            credentials,
            documents: Documents::default(),
        }
    }

    /// Returns the document `D` of this session. The first call renders it; later ones return the
    /// same bytes and neither copy, allocate nor lock. The bytes are wiped when the session and all
    /// responses that contain them are dropped.
    pub fn document<D: Document>(&self) -> Bytes {
        let kind = TypeId::of::<D>();
        let mut next = &self.documents;
        loop {
            let rendered = next.0.get_or_init(|| {
                Box::new(Rendered {
                    kind,
                    bytes: Bytes::from_owner(Wiped(D::render(self))),
                    next: Documents::default(),
                })
            });
            if rendered.kind == kind {
                return rendered.bytes.clone();
            }
            next = &rendered.next;
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("role", &self.role)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// A document that an endpoint serves for a session. Each endpoint implements it for a type of its
/// own, by which [`Session::document`] finds the rendered bytes.
pub trait Document: 'static {
    /// Renders the document. An implementation must not call [`Session::document`] for the same
    /// type, which would deadlock. It should allocate the buffer at its final size, since a
    /// buffer that grows leaves copies of secrets in memory.
    fn render(session: &Session) -> Zeroizing<Vec<u8>>;
}

/// The rendered documents of a session. A linked list that only grows can be read without a lock,
/// and is as fast as a field for the first kind of document, usually the only one.
#[derive(Default)]
struct Documents(OnceLock<Box<Rendered>>);

struct Rendered {
    kind: TypeId,
    bytes: Bytes,
    next: Documents,
}

/// A buffer that is wiped when its last reference is dropped.
struct Wiped(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    use jiff::Timestamp;
    use rolegate_core::session::Validity;
    use zeroize::ZeroizeOnDrop;

    use super::*;

    fn session(secret: &str, token: &str) -> Session {
        let role = RoleArn::parse("arn:aws:iam::123456789012:role/reader").unwrap();
        let validity = Validity {
            not_before: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::UNIX_EPOCH,
        };
        Session::new(role, Credentials::new("ASIA1", secret, token, validity))
    }

    struct Token;

    impl Document for Token {
        fn render(session: &Session) -> Zeroizing<Vec<u8>> {
            Zeroizing::new(session.credentials.session_token().into())
        }
    }

    /// A document that names the role and counts how often it was rendered.
    struct Role;

    static ROLE_RENDERED: AtomicU32 = AtomicU32::new(0);

    impl Document for Role {
        fn render(session: &Session) -> Zeroizing<Vec<u8>> {
            ROLE_RENDERED.fetch_add(1, Ordering::Relaxed);
            Zeroizing::new(session.role.name().into())
        }
    }

    #[test]
    fn each_kind_of_document_is_rendered_once() {
        let session = session("secret", "token");
        let first = session.document::<Token>();
        for _ in 0..3 {
            assert_eq!(session.document::<Role>(), "reader");
            let again = session.document::<Token>();
            assert_eq!(
                (&again[..], again.as_ptr()),
                (&b"token"[..], first.as_ptr())
            );
        }
        assert_eq!(ROLE_RENDERED.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn rule_06_debug_shows_no_secret() {
        let session = session("very-secret", "also-secret");
        session.document::<Token>();
        let text = format!("{session:?} {session:#?}");
        assert!(text.contains("ASIA1") && !text.contains("secret"), "{text}");
    }

    /// Returns `length` bytes of this process's memory, allocated or not; zeros if not mapped.
    fn memory(at: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let memory = File::open("/proc/self/mem").unwrap();
        let _ = memory.read_exact_at(&mut bytes, at as u64);
        bytes
    }

    #[test]
    fn rule_06_dropped_sessions_are_wiped() {
        fn wiped<T: ZeroizeOnDrop>(_: &T) {}
        const TOKEN: &str = "a token that is long enough to survive the allocator's own notes, 64";
        let session = session("a secret of forty characters, as AWS has", TOKEN);
        wiped(&session.credentials);
        let document = session.document::<Token>();
        let kept = session.credentials.session_token();
        let places = [document.as_ptr().addr(), kept.as_ptr().addr()];
        let end = |place| memory(place + 32, TOKEN.len() - 32);
        for place in places {
            assert_eq!(end(place), TOKEN.as_bytes()[32..]);
        }
        drop(session);
        // A response that is still being sent keeps the document.
        assert_eq!(document, TOKEN);
        drop(document);
        for place in places {
            assert_ne!(end(place), TOKEN.as_bytes()[32..]);
        }
    }
}
