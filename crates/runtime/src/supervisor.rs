//! The tasks of a process: which of them it requires, how it ends when one exits, and the order in
//! which they stop.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::drain::Drain;
use crate::readiness::Readiness;

/// A kind of process: an agent, a broker, a webhook or a controller. [`Running`] owns one that is
/// started.
pub trait Service: Sized + Send {
    /// The validated options.
    type Options;
    /// The bound addresses.
    type Addresses: Copy;
    /// An error that prevents the start.
    type Error: StartError;

    /// Starts all tasks, and returns once the ports are open. Dependencies that are not available
    /// yet are retried, and the readiness of `supervisor` reports them.
    fn start(
        options: Self::Options,
        supervisor: &mut Supervisor,
    ) -> impl Future<Output = Result<(Self, Self::Addresses), Self::Error>> + Send;

    /// Waits until the next process has taken over the sockets. By default none does.
    fn handed_over(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Cleans up after all tasks have exited.
    fn stopped(self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// A started process. Dropping it aborts all of its tasks and connections.
#[derive(Debug)]
pub struct Running<S: Service> {
    service: S,
    addresses: S::Addresses,
    supervisor: Supervisor,
}

impl<S: Service> Running<S> {
    /// Starts a process, see [`Service::start`].
    ///
    /// # Errors
    /// Returns an error if the options or the environment prevent the start.
    pub async fn start(options: S::Options) -> Result<Self, S::Error> {
        let mut supervisor = Supervisor::new();
        let (service, addresses) = S::start(options, &mut supervisor).await?;
        Ok(Self {
            service,
            addresses,
            supervisor,
        })
    }

    /// Returns the bound addresses.
    pub fn addresses(&self) -> S::Addresses {
        self.addresses
    }

    /// Returns the readiness.
    pub fn readiness(&self) -> &Readiness {
        self.supervisor.readiness()
    }

    /// Waits until the process ends by itself.
    pub async fn ended(&mut self) -> Ended {
        tokio::select! {
            () = self.service.handed_over() => Ended::HandedOver,
            task = self.supervisor.ended() => Ended::TaskExited(task),
        }
    }

    /// Stops gracefully: accepts nothing new, and waits up to `deadline` for open work.
    pub async fn stop(self, deadline: Duration) {
        self.supervisor.stop(deadline).await;
        self.service.stopped().await;
    }
}

/// An error that prevents the start of a [`Service`].
pub trait StartError: std::error::Error + Send + Sync + 'static {
    /// Returns `true` if other flags or files are needed, so that a retry would not help.
    fn is_usage(&self) -> bool;
}

/// The reason why a process ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The next process has its sockets; this one only finishes open requests.
    HandedOver,
    /// A required task exited, which is a bug. Holds the task's name.
    TaskExited(&'static str),
}

/// The owner of a process's tasks. Dropping it aborts all tasks and connections.
#[derive(Debug, Default)]
pub struct Supervisor {
    readiness: Readiness,
    drain: Drain,
    stopping: CancellationToken,
    /// The tasks that finish by themselves when the process stops, by name.
    finishing: Vec<(&'static str, TaskTracker)>,
    /// All tasks. A required one returns its name.
    tasks: JoinSet<Option<&'static str>>,
}

impl Supervisor {
    /// Creates a supervisor without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a supervisor of tasks that run only for a part of the process's life, such as while
    /// it is the leader. They share its readiness.
    pub fn with_readiness(readiness: Readiness) -> Self {
        let mut supervisor = Self::default();
        supervisor.readiness = readiness;
        supervisor
    }

    /// Returns the readiness of the process.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Returns the drain, by which servers stop accepting and close their connections.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Returns the token that tells the tasks of [`spawn_graceful`](Self::spawn_graceful) to
    /// exit.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Spawns a task that may exit.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            None
        });
    }

    /// Spawns a required task: its exit is a bug and ends the process.
    pub fn spawn_required(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tasks.spawn(async move {
            task.await;
            Some(name)
        });
    }

    /// Spawns a required task that must finish its work when the process stops, such as the release
    /// of a Lease. [`stop`](Self::stop) waits for it. It must exit after
    /// [`stopping`](Self::stopping) is cancelled, or when the tasks that use it exit.
    pub fn spawn_graceful(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let tracker = TaskTracker::new();
        let running = tracker.token();
        self.finishing.push((name, tracker));
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            task.await;
            drop(running);
            (!stopping.is_cancelled()).then_some(name)
        });
    }

    /// Waits until a required task exits or any task panics, and returns the task's name.
    pub async fn ended(&mut self) -> &'static str {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Some(name))) => return name,
                Some(Ok(None)) => {}
                Some(Err(_)) => return "a task",
                None => std::future::pending().await,
            }
        }
    }

    /// Tells the tasks of [`spawn_graceful`](Self::spawn_graceful) to exit, and waits for them.
    /// Returns the names of those that still run at `until`. All other tasks continue: liveness
    /// probes succeed meanwhile.
    async fn finish(&self, until: Instant) -> Vec<&'static str> {
        self.stopping.cancel();
        let mut late = Vec::new();
        for (name, tracker) in &self.finishing {
            tracker.close();
            if timeout_at(until, tracker.wait()).await.is_err() {
                late.push(*name);
            }
        }
        late
    }

    /// Stops gracefully, up to `deadline`: first the tasks that finish by themselves, then the
    /// servers with their open connections. All other tasks are aborted last.
    pub async fn stop(mut self, deadline: Duration) {
        let until = Instant::now() + deadline;
        for task in self.finish(until).await {
            tracing::warn!(
                task,
                "shutdown timed out before the task had finished its work"
            );
        }
        let left = until.saturating_duration_since(Instant::now());
        self.drain.drain(left).await;
        self.tasks.shutdown().await;
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Connections are tasks of the drain.
        self.drain.force();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_exit_of_a_required_task_ends_the_process() {
        let mut supervisor = Supervisor::new();
        supervisor.spawn(async {});
        supervisor.spawn_required("idle", std::future::pending());
        let ended = tokio::time::timeout(Duration::from_secs(1), supervisor.ended());
        assert!(ended.await.is_err());
        supervisor.spawn_required("watch", async {});
        assert_eq!(supervisor.ended().await, "watch");
        supervisor.spawn(async { panic!("a bug") });
        assert_eq!(supervisor.ended().await, "a task");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_waits_for_finishing_tasks_while_servers_still_run() {
        let mut supervisor = Supervisor::new();
        let (stopping, begun) = (supervisor.stopping().clone(), supervisor.drain().begun());
        let (finished, result) = oneshot::channel();
        supervisor.spawn_graceful("lease", async move {
            stopping.cancelled().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let _ = finished.send(begun.now_or_never().is_none());
        });
        supervisor.spawn_required("watch", std::future::pending());
        supervisor.stop(Duration::from_secs(5)).await;
        assert_eq!(result.await, Ok(true), "the drain began too early");
    }

    #[tokio::test(start_paused = true)]
    async fn a_finishing_task_is_required_until_the_stop() {
        let mut supervisor = Supervisor::new();
        supervisor.spawn_graceful("leader election", async {});
        assert_eq!(supervisor.ended().await, "leader election");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_does_not_wait_longer_than_the_deadline() {
        let mut supervisor = Supervisor::new();
        supervisor.spawn_graceful("stuck", std::future::pending());
        let start = Instant::now();
        supervisor.spawn_graceful("obedient", async {});
        let late = supervisor.finish(start + Duration::from_secs(1)).await;
        assert_eq!(late, ["stuck"]);
        supervisor.stop(Duration::from_secs(5)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(6));
    }

    #[tokio::test]
    async fn dropping_it_ends_connections() {
        let supervisor = Supervisor::new();
        let forced = supervisor.drain().forced();
        drop(supervisor);
        assert!(forced.now_or_never().is_some());
    }
}
