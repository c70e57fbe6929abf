//! The `kid`s that the cluster does not publish.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Maximum number of remembered `kid`s. The oldest is forgotten first, which costs at most a fetch
/// within the rate.
const MAX_IDS: usize = 256;
/// The time for which a `kid` is remembered. Short, because one of several API servers may publish a
/// new key before the others do.
const MEMORY: Duration = Duration::from_secs(20);

/// A bounded set of `kid`s, each for a limited time.
#[derive(Debug, Default)]
pub(super) struct UnknownKeyIds(VecDeque<(Box<str>, Instant)>);

impl UnknownKeyIds {
    /// Returns whether `id` was inserted recently.
    pub(super) fn contains(&mut self, id: &str, now: Instant) -> bool {
        self.forget(now);
        self.0.iter().any(|(known, _)| &**known == id)
    }

    /// Remembers that no key has this `id`.
    pub(super) fn insert(&mut self, id: &str, now: Instant) {
        if self.contains(id, now) {
            return;
        }
        if self.0.len() >= MAX_IDS {
            self.0.pop_front();
        }
        self.0.push_back((id.into(), now));
    }

    fn forget(&mut self, now: Instant) {
        // In order of time, since a `kid` is inserted once.
        while let Some((_, since)) = self.0.front()
            && now.duration_since(*since) >= MEMORY
        {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_bounded_in_number_and_time() {
        let mut unknown = UnknownKeyIds::default();
        let start = Instant::now();
        for n in 0..=MAX_IDS {
            unknown.insert(&n.to_string(), start);
        }
        assert_eq!(unknown.0.len(), MAX_IDS);
        assert!(!unknown.contains("0", start));
        assert!(unknown.contains("1", start));
        unknown.insert("later", start + MEMORY / 2);
        assert!(!unknown.contains("1", start + MEMORY));
        assert!(unknown.contains("later", start + MEMORY));
        assert_eq!(unknown.0.len(), 1);
    }
}
