//! A running step: pods send requests, which are recorded and shown with their responses.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::{Instant, sleep};

use super::ask::{Ask, Reply, Session};
use super::pods::Pod;
use super::report::{Exchange, Step};
use super::screen::Screen;
use super::stage::Stage;

/// Interval between two requests of a pod that polls.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum time to wait for any event.
const EVENT_TIMEOUT: Duration = Duration::from_secs(20);

/// A step's name, title and reason.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepInfo {
    /// Its name, for scripts.
    pub(super) name: &'static str,
    /// The displayed title.
    pub(super) title: &'static str,
    /// The reason why it matters.
    pub(super) why: &'static str,
}

/// A running step.
pub(super) struct Take<'a> {
    /// The parts that it uses.
    pub(super) stage: &'a Stage<'a>,
    screen: &'a mut Screen,
    exchanges: Vec<Exchange>,
    notes: Vec<String>,
}

impl<'a> Take<'a> {
    /// Runs a step to its end. The outcome records its errors.
    ///
    /// # Errors
    /// Returns an error if the output cannot be written.
    pub(super) async fn play(
        stage: &'a Stage<'a>,
        screen: &'a mut Screen,
        number: usize,
        plot: StepInfo,
        act: impl AsyncFnOnce(&mut Take<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Step> {
        screen.title(number, plot.title);
        let mut take = Take {
            stage,
            screen,
            exchanges: Vec::new(),
            notes: Vec::new(),
        };
        let played = act(&mut take).await;
        let fault = played.err().map(|error| format!("{error:#}"));
        let step = Step {
            name: plot.name,
            title: plot.title,
            why: plot.why,
            ok: fault.is_none(),
            fault,
            exchanges: take.exchanges,
            notes: take.notes,
        };
        take.screen.verdict(&step);
        take.screen.check()?;
        Ok(step)
    }

    /// Sends one request.
    pub(super) async fn ask(&mut self, pod: &Pod, ask: Ask) -> Reply {
        let reply = self.stage.ask(pod, &ask).await;
        self.keep(pod, &ask, &reply);
        reply
    }

    /// Sends one request, and requires this status and no secret of the node.
    pub(super) async fn expect(
        &mut self,
        pod: &Pod,
        ask: Ask,
        status: u16,
    ) -> anyhow::Result<Reply> {
        let reply = self.ask(pod, ask).await;
        ensure!(!reply.leaks(), "the response contains a secret of the node");
        ensure!(
            reply.status == Some(status),
            "the response should be {status}"
        );
        Ok(reply)
    }

    /// Repeats a request until it returns this status, as SDKs do, and records the last response.
    pub(super) async fn until(
        &mut self,
        pod: &Pod,
        ask: Ask,
        status: u16,
    ) -> anyhow::Result<Reply> {
        let deadline = Instant::now() + EVENT_TIMEOUT;
        loop {
            let reply = self.stage.ask(pod, &ask).await;
            let leaks = reply.leaks();
            if reply.status == Some(status) || leaks || Instant::now() > deadline {
                self.keep(pod, &ask, &reply);
                ensure!(!leaks, "the response contains a secret of the node");
                ensure!(
                    reply.status == Some(status),
                    "the response should be {status}"
                );
                return Ok(reply);
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Requests credentials repeatedly until `done`. Every response must be a valid session.
    /// Records the last one and reports the number of requests.
    pub(super) async fn steadily(
        &mut self,
        pod: &Pod,
        ask: Ask,
        mut done: impl FnMut(&Session) -> bool,
    ) -> anyhow::Result<Session> {
        let deadline = Instant::now() + EVENT_TIMEOUT;
        for count in 1_u32.. {
            let reply = self.stage.ask(pod, &ask).await;
            let session = reply.session();
            match session {
                Ok(session) if done(&session) => {
                    self.note(format!(
                        "{count} requests meanwhile, each answered with a valid session"
                    ));
                    self.keep(pod, &ask, &reply);
                    return Ok(session);
                }
                Ok(_) if Instant::now() < deadline => sleep(POLL_INTERVAL).await,
                other => {
                    self.keep(pod, &ask, &reply);
                    other.with_context(|| format!("answer {count}"))?;
                    break;
                }
            }
        }
        anyhow::bail!("it did not happen within {EVENT_TIMEOUT:?}")
    }

    /// Waits for an event that pods do not see.
    pub(super) async fn wait<T>(
        &self,
        what: &str,
        look: impl Fn() -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + EVENT_TIMEOUT;
        loop {
            if let Some(seen) = look() {
                return Ok(seen);
            }
            ensure!(
                Instant::now() < deadline,
                "{what} did not appear within {EVENT_TIMEOUT:?}"
            );
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Reports an event other than the requests.
    pub(super) fn note(&mut self, note: String) {
        self.screen.note(&note);
        self.notes.push(note);
    }

    /// Returns the last recorded request, as typed in the pod.
    pub(super) fn last_typed(&self) -> String {
        self.exchanges
            .last()
            .map(|exchange| exchange.typed.clone())
            .unwrap_or_default()
    }

    fn keep(&mut self, pod: &Pod, ask: &Ask, reply: &Reply) {
        let exchange = Exchange {
            pod: pod.full_name(),
            typed: self.stage.typed(pod, ask),
            command: self.stage.command(pod, ask),
            status: reply.status,
            answer: reply.shown(),
        };
        self.screen.exchange(&exchange);
        self.exchanges.push(exchange);
    }
}
