//! Tokens that were verified, by their hash, so that a pod's next request costs no signature check.
//!
//! The cache holds identities and no credentials: each request still checks that the pod is alive
//! and allowed. Its size is bounded for each pod and in total.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use rolegate_service_account_token::Identity;

/// Maximum number of tokens of one pod. A pod has one for each audience and renews it twice an hour
/// at most; CSI drivers request one for each mount.
const MAX_TOKENS_PER_POD: usize = 16;
/// Maximum number of pods with verified tokens. The oldest is forgotten first. A node has 250 pods
/// by default.
const MAX_PODS: usize = 4096;
/// Number of shards, a power of two.
const SHARDS: usize = 16;

/// The SHA-256 of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TokenHash([u8; 32]);

impl TokenHash {
    /// Hashes a token.
    pub(super) fn of(token: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, token).as_ref());
        Self(hash)
    }
}

/// A token that was verified.
#[derive(Debug)]
pub(super) struct VerifiedToken {
    /// The pod that the token is bound to.
    pub(super) identity: Identity,
    /// The state of the cluster's keys in which it was verified.
    pub(super) generation: u64,
}

/// The verified tokens of all pods.
#[derive(Debug, Default)]
pub(super) struct VerifiedTokens {
    shards: [RwLock<HashMap<TokenHash, Arc<VerifiedToken>>>; SHARDS],
    pods: Mutex<Pods>,
}

/// The tokens of each pod, oldest first, and the pods in the order of their first token.
#[derive(Debug, Default)]
struct Pods {
    tokens: HashMap<Arc<str>, VecDeque<TokenHash>>,
    order: VecDeque<Arc<str>>,
}

impl VerifiedTokens {
    fn shard(&self, hash: &TokenHash) -> &RwLock<HashMap<TokenHash, Arc<VerifiedToken>>> {
        let [first, ..] = hash.0;
        let [shard, ..] = &self.shards;
        self.shards
            .get(usize::from(first) % SHARDS)
            .unwrap_or(shard)
    }

    /// Returns a token that was verified with the current keys and is not expired.
    pub(super) fn get(
        &self,
        hash: &TokenHash,
        generation: u64,
        now: Timestamp,
    ) -> Option<Arc<VerifiedToken>> {
        let shard = self.shard(hash).read();
        let token = shard.get(hash)?;
        let is_current = token.generation == generation && now < token.identity.expires_at;
        is_current.then(|| token.clone())
    }

    /// Keeps a token. Forgets the pod's oldest one, or the oldest pod's, if there are too many.
    pub(super) fn insert(&self, hash: TokenHash, token: Arc<VerifiedToken>) {
        let uid = token.identity.pod.uid.clone();
        let mut pods = self.pods.lock();
        if self.shard(&hash).write().insert(hash, token).is_some() {
            return;
        }
        if !pods.tokens.contains_key(&uid) {
            if pods.order.len() >= MAX_PODS
                && let Some(oldest) = pods.order.pop_front()
            {
                let hashes = pods.tokens.remove(&oldest).unwrap_or_default();
                hashes.iter().for_each(|hash| self.forget(hash));
            }
            pods.order.push_back(uid.clone());
        }
        let hashes = pods.tokens.entry(uid).or_default();
        if hashes.len() >= MAX_TOKENS_PER_POD
            && let Some(oldest) = hashes.pop_front()
        {
            self.forget(&oldest);
        }
        hashes.push_back(hash);
    }

    /// Forgets expired tokens, and those of pods that are gone.
    pub(super) fn sweep(&self, now: Timestamp, is_alive: impl Fn(&str) -> bool) {
        let mut pods = self.pods.lock();
        let Pods { tokens, order } = &mut *pods;
        tokens.retain(|uid, hashes| {
            let is_alive = is_alive(uid);
            hashes.retain(|hash| {
                let keeps = is_alive && {
                    let shard = self.shard(hash).read();
                    let token = shard.get(hash);
                    token.is_some_and(|token| now < token.identity.expires_at)
                };
                if !keeps {
                    self.forget(hash);
                }
                keeps
            });
            !hashes.is_empty()
        });
        order.retain(|uid| tokens.contains_key(uid));
    }

    fn forget(&self, hash: &TokenHash) {
        self.shard(hash).write().remove(hash);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use rolegate_service_account_token::ObjectRef;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn token(uid: &str, expires: i64) -> Arc<VerifiedToken> {
        let object = |name: &str| ObjectRef {
            name: name.into(),
            uid: name.into(),
        };
        Arc::new(VerifiedToken {
            identity: Identity {
                namespace: "shop".into(),
                service_account: object("web"),
                pod: object(uid),
                node: None,
                audience: "a".into(),
                expires_at: at(expires),
            },
            generation: 1,
        })
    }

    fn hash(text: &str) -> TokenHash {
        TokenHash::of(text.as_bytes())
    }

    #[test]
    fn a_token_counts_until_it_expires_or_the_keys_change() {
        let tokens = VerifiedTokens::default();
        tokens.insert(hash("a"), token("pod-1", 100));
        assert!(tokens.get(&hash("a"), 1, at(99)).is_some());
        assert!(tokens.get(&hash("a"), 1, at(100)).is_none());
        assert!(tokens.get(&hash("a"), 2, at(99)).is_none());
        assert!(tokens.get(&hash("b"), 1, at(99)).is_none());
    }

    #[test]
    fn threat_19_tokens_are_bounded_for_each_pod_and_in_total() {
        let tokens = VerifiedTokens::default();
        tokens.insert(hash("neighbour"), token("pod-0", 100));
        for n in 0..1000 {
            tokens.insert(hash(&n.to_string()), token("pod-1", 100));
        }
        assert_eq!(tokens.len(), 1 + MAX_TOKENS_PER_POD);
        assert!(tokens.get(&hash("neighbour"), 1, at(0)).is_some());
        assert!(tokens.get(&hash("999"), 1, at(0)).is_some());
        assert!(tokens.get(&hash("0"), 1, at(0)).is_none());
        for n in 0..MAX_PODS + 10 {
            tokens.insert(hash(&format!("p{n}")), token(&format!("p{n}"), 100));
        }
        assert_eq!(tokens.len(), MAX_PODS);
        assert_eq!(tokens.pods.lock().order.len(), MAX_PODS);
    }

    #[test]
    fn a_sweep_forgets_the_expired_and_the_dead() {
        let tokens = VerifiedTokens::default();
        tokens.insert(hash("a"), token("alive", 100));
        tokens.insert(hash("b"), token("alive", 50));
        tokens.insert(hash("c"), token("dead", 100));
        tokens.sweep(at(60), |uid| uid == "alive");
        assert_eq!(tokens.len(), 1);
        assert!(tokens.get(&hash("a"), 1, at(60)).is_some());
        let pods = tokens.pods.lock();
        assert_eq!((pods.tokens.len(), pods.order.len()), (1, 1));
    }
}
