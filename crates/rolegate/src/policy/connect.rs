//! Connects to the cluster that flags select, and shows the progress of reads.

use std::io::Write;
use std::time::Duration;

use rolegate_core::text::plain;
use rolegate_inventory::cluster::{Cluster, ClusterError, ListObserver, ReadObserver};

use crate::flags::kubernetes::ReadingFlags;
use crate::progress::Progress;

/// The level of `-v` that prints object counts.
const COUNTS_LEVEL: u8 = 1;
/// The level of `-v` that prints each request.
const REQUESTS_LEVEL: u8 = 6;

/// Connects to the cluster that the flags select.
///
/// # Errors
/// Returns an error if no cluster is configured.
pub(crate) async fn connect(flags: &ReadingFlags) -> Result<Cluster, ClusterError> {
    let observer = Verbose {
        level: flags.verbosity(),
    };
    Cluster::connect(&flags.client(), flags.request_timeout(), Box::new(observer)).await
}

/// Prints reads on standard error, with kubectl's levels.
struct Verbose {
    level: u8,
}

impl Verbose {
    fn print(&self, level: u8, text: impl FnOnce() -> String) {
        if self.level >= level {
            let text = text();
            // Ignored: standard error may be closed.
            let _ = writeln!(std::io::stderr(), "{}", plain(&text));
        }
    }
}

impl ReadObserver for Verbose {
    fn list(&self, plural: &str) -> Box<dyn ListObserver> {
        Box::new(Progress::new(plural))
    }

    fn listed(&self, plural: &str, count: usize) {
        self.print(COUNTS_LEVEL, || format!("{count} {plural}"));
    }

    fn requested(&self, url: &str, outcome: &str, time: Duration) {
        let time = time.as_millis();
        self.print(REQUESTS_LEVEL, || {
            format!("GET {url} {outcome} in {time} ms")
        });
    }
}

impl ListObserver for Progress {
    fn page(&mut self, count: usize, remaining: Option<i64>) {
        self.show(count, remaining);
    }
}
