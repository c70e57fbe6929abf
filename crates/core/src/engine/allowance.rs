//! A bucket of first fetches for each namespace. It outlives the sessions, so deleting and
//! creating pods or flipping annotations does not fill it.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Timestamp,
}

#[derive(Debug)]
pub(super) struct Allowances {
    burst: f64,
    /// A second.
    rate: f64,
    buckets: HashMap<Arc<str>, Bucket>,
}

impl Allowances {
    pub(super) fn new(burst: u32, rate: f64) -> Self {
        Self {
            burst: f64::from(burst.max(1)),
            rate: rate.max(0.01),
            buckets: HashMap::new(),
        }
    }

    /// Takes what something costs, or tells how long to wait for it.
    pub(super) fn take(
        &mut self,
        namespace: &Arc<str>,
        cost: f64,
        now: Timestamp,
    ) -> Result<(), SignedDuration> {
        let (burst, rate) = (self.burst, self.rate);
        let bucket = self.buckets.entry(namespace.clone()).or_insert(Bucket {
            left: burst,
            at: now,
        });
        bucket.refill(burst, rate, now);
        // What costs more than a bucket holds takes a whole one.
        let cost = cost.min(burst);
        if bucket.left >= cost {
            bucket.left -= cost;
            return Ok(());
        }
        Err(SignedDuration::from_secs_f64((cost - bucket.left) / rate))
    }

    /// Drops buckets that are full again, which are the same as none.
    pub(super) fn trim(&mut self, now: Timestamp) {
        if self.buckets.len() > 64 {
            let (burst, rate) = (self.burst, self.rate);
            self.buckets.retain(|_, bucket| {
                bucket.refill(burst, rate, now);
                bucket.left < burst
            });
        }
    }
}

impl Bucket {
    fn refill(&mut self, burst: f64, rate: f64, now: Timestamp) {
        let passed = self.at.duration_until(now).as_secs_f64().max(0.0);
        self.left = (self.left + passed * rate).min(burst);
        self.at = now;
    }
}
