//! Follows the kernel's events and the changes of the container runtime's records.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rolegate_netlink::{Error as NetlinkError, readable};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::{Attachments, lock};

/// Minimum time between two reads of the records: a pod that keeps requesting from an address
/// without a record must not make the agent read all the time.
const MIN_READ_INTERVAL: Duration = Duration::from_millis(200);
/// Minimum time between two checks of all addresses.
const MIN_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between attempts to follow the kernel's events.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

impl Attachments {
    /// Follows the kernel's events and the records until it is dropped. It calls `on_change` when a
    /// [`check`](Self::check) that lacked an attachment, or had unread events, may succeed. A check
    /// does not depend on this task: it reads pending events itself.
    ///
    /// If the kernel's events are not available, it reports this once and retries. Until then each
    /// new connection is checked individually.
    pub async fn run(&self, on_change: impl Fn() + Send + Sync) {
        let kernel = async {
            let mut is_reported = false;
            loop {
                let Err(error) = self.follow_kernel().await;
                if !std::mem::replace(&mut is_reported, true) {
                    warn!(%error, "cannot follow the kernel's events; checking each new connection instead");
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        tokio::select! {
            () = kernel => {}
            () = self.follow_recoveries(&on_change) => {}
            () = self.follow_records(&on_change) => {}
        }
    }

    async fn follow_kernel(&self) -> Result<Infallible, NetlinkError> {
        let events = readable(lock(&self.events).source().socket()?)?;
        tokio::select! {
            error = self.follow_events(events) => error,
            error = self.follow_losses() => error,
        }
    }

    async fn follow_events(&self, events: AsyncFd<OwnedFd>) -> Result<Infallible, NetlinkError> {
        loop {
            // Cleared first: an event during the read wakes this again.
            events.readable().await?.clear_ready();
            while !self.catch_up()?.all {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn follow_losses(&self) -> Result<Infallible, NetlinkError> {
        loop {
            self.lost.notified().await;
            self.recheck_all()?;
            tokio::time::sleep(MIN_CHECK_INTERVAL).await;
        }
    }

    async fn follow_recoveries(&self, on_change: impl Fn()) {
        loop {
            self.recovered.notified().await;
            on_change();
        }
    }

    async fn follow_records(&self, on_change: impl Fn()) {
        loop {
            // Subscribed before the read, so that no change is missed in between.
            let watch = self.results_dir.as_deref().and_then(watch);
            let read = self.reread();
            if read.moved || read.added {
                on_change();
            }
            tokio::time::sleep(MIN_READ_INTERVAL).await;
            match &watch {
                Some(watch) => tokio::select! {
                    _ = watch.readable() => {}
                    () = self.wanted.notified() => {}
                },
                None => self.wanted.notified().await,
            }
        }
    }
}

/// Watches the directory for changes. Returns `None` if it does not exist.
fn watch(folder: &Path) -> Option<AsyncFd<OwnedFd>> {
    let changes = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ATTRIB;
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
    inotify::add_watch(&watch, folder, changes).ok()?;
    readable(watch).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn each_change_of_the_records_is_noticed() {
        let parent = tempfile::tempdir().unwrap();
        let [folder, moved] = ["results", "moved"].map(|name| parent.path().join(name));
        let [record, outside] = [folder.join("eth0"), parent.path().join("eth0")];
        fs::create_dir(&folder).unwrap();
        let changes: [&dyn Fn() -> std::io::Result<()>; 7] = [
            &|| fs::write(&record, "{}"),
            &|| fs::set_permissions(&record, fs::Permissions::from_mode(0o600)),
            &|| fs::rename(&record, &outside),
            &|| fs::rename(&outside, &record),
            &|| fs::remove_file(&record),
            &|| fs::rename(&folder, &moved).and_then(|()| fs::rename(&moved, &folder)),
            &|| fs::remove_dir(&folder),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let watch = watch(&folder).unwrap();
            change().unwrap();
            let noticed = tokio::time::timeout(Duration::from_secs(60), watch.readable());
            assert!(noticed.await.is_ok(), "change {number}");
        }
        assert!(watch(&folder).is_none());
    }
}
