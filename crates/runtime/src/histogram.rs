//! A duration histogram for the request path: fixed buckets, no locks, no waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A histogram of durations in seconds with fixed buckets. Cloning is cheap; clones share state.
///
/// `prometheus_client`'s own histogram takes a lock for each observation, which a request must not
/// wait for.
#[derive(Debug, Clone)]
pub struct AtomicHistogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds: &'static [f64],
    stripes: [Stripe; STRIPES],
}

/// Counters for some of the threads, so that concurrent threads update different cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe {
    nanoseconds: AtomicU64,
    /// One counter per bound, then one for values above all bounds.
    counts: Box<[AtomicU64]>,
}

/// Usually the number of threads that serve requests.
const STRIPES: usize = 4;

thread_local! {
    static STRIPE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Relaxed) % STRIPES
    };
}

impl AtomicHistogram {
    /// Bucket bounds for responses from memory or from a service nearby, in seconds.
    pub const LATENCIES: &'static [f64] = &[
        0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
        2.5, 5.0, 10.0,
    ];

    /// Creates a histogram with these upper bounds, in seconds, finite and rising.
    pub fn new(bounds: &'static [f64]) -> Self {
        debug_assert!(bounds.is_sorted_by(|a, b| a < b) && bounds.iter().all(|b| b.is_finite()));
        Self(Arc::new(Inner {
            bounds,
            stripes: std::array::from_fn(|_| Stripe {
                nanoseconds: AtomicU64::new(0),
                counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            }),
        }))
    }

    /// Records one duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.0.bounds.partition_point(|&bound| bound < seconds);
        let Some(stripe) = self.0.stripes.get(STRIPE.with(|stripe| *stripe)) else {
            return;
        };
        if let Some(count) = stripe.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        stripe.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    /// Returns the number of recorded durations.
    pub fn count(&self) -> u64 {
        self.counts().sum()
    }

    /// Returns the counts of all stripes, summed by bucket.
    fn counts(&self) -> impl Iterator<Item = u64> {
        (0..=self.0.bounds.len()).map(|bucket| {
            let stripes = self.0.stripes.iter();
            let counts = stripes.filter_map(|stripe| stripe.counts.get(bucket));
            counts.map(|count| count.load(Relaxed)).sum()
        })
    }
}

impl EncodeMetric for AtomicHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(self.counts()).collect();
        // The sum of the exported buckets, so that the total and the last bucket always agree.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let stripes = self.0.stripes.iter();
        let nanoseconds = stripes.map(|stripe| stripe.nanoseconds.load(Relaxed)).sum();
        let sum = Duration::from_nanos(nanoseconds).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for AtomicHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::family::Family;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::test_util::Exposition;

    #[test]
    fn counts_are_cumulative_and_bounds_inclusive() {
        let mut registry = Registry::default();
        let histogram = AtomicHistogram::new(&[0.1, 1.0]);
        registry.register("took", "How long", histogram.clone());
        for milliseconds in [1, 100, 101, 1000, 5000] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        Exposition::encode(&registry).assert_lines([
            "# TYPE took histogram",
            "took_sum 6.202",
            "took_count 5",
            "took_bucket{le=\"0.1\"} 2",
            "took_bucket{le=\"1.0\"} 4",
            "took_bucket{le=\"+Inf\"} 5",
        ]);
    }

    #[test]
    fn works_in_a_family_and_from_many_threads() {
        type Label = [(&'static str, &'static str); 1];
        let family =
            Family::<Label, AtomicHistogram, fn() -> AtomicHistogram>::new_with_constructor(|| {
                AtomicHistogram::new(AtomicHistogram::LATENCIES)
            });
        let histogram = family.get_or_create(&[("outcome", "ok")]).clone();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        histogram.observe(Duration::from_micros(300));
                    }
                });
            }
        });
        assert_eq!(histogram.count(), 4000);
    }
}
