//! One step being played: pods ask, and what they ask and get is kept and shown.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::{Instant, sleep};

use super::ask::{Ask, Reply, Session};
use super::cast::Pod;
use super::report::{Exchange, Step};
use super::screen::Screen;
use super::stage::Stage;

/// Between two requests of a pod that asks on.
const PACE: Duration = Duration::from_millis(50);
/// The longest that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A step's name, title and reason.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plot {
    /// For scripts.
    pub(super) name: &'static str,
    /// What is shown.
    pub(super) title: &'static str,
    /// Why it matters.
    pub(super) why: &'static str,
}

/// A step that is being played.
#[derive(Debug)]
pub(super) struct Take<'a> {
    /// What it is played on.
    pub(super) stage: &'a Stage<'a>,
    screen: &'a mut Screen,
    exchanges: Vec<Exchange>,
    notes: Vec<String>,
}

impl<'a> Take<'a> {
    /// Plays a step to its end. What goes wrong in it is kept in the outcome.
    ///
    /// # Errors
    /// When the screen can't be written.
    pub(super) async fn play(
        stage: &'a Stage<'a>,
        screen: &'a mut Screen,
        number: usize,
        plot: Plot,
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

    /// Asks once.
    pub(super) async fn ask(&mut self, pod: &Pod, ask: Ask) -> Reply {
        let reply = self.stage.ask(pod, &ask).await;
        self.keep(pod, &ask, &reply);
        reply
    }

    /// Asks once, and wants this status and no secret of the node.
    pub(super) async fn expect(
        &mut self,
        pod: &Pod,
        ask: Ask,
        status: u16,
    ) -> anyhow::Result<Reply> {
        let reply = self.ask(pod, ask).await;
        ensure!(!reply.leaks(), "the answer has a secret of the node");
        ensure!(
            reply.status == Some(status),
            "the answer should be {status}"
        );
        Ok(reply)
    }

    /// Asks on until the status is this one, as SDKs do, and keeps the last answer.
    pub(super) async fn until(
        &mut self,
        pod: &Pod,
        ask: Ask,
        status: u16,
    ) -> anyhow::Result<Reply> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reply = self.stage.ask(pod, &ask).await;
            let leaks = reply.leaks();
            if reply.status == Some(status) || leaks || Instant::now() > deadline {
                self.keep(pod, &ask, &reply);
                ensure!(!leaks, "the answer has a secret of the node");
                ensure!(
                    reply.status == Some(status),
                    "the answer should be {status}"
                );
                return Ok(reply);
            }
            sleep(PACE).await;
        }
    }

    /// Asks for credentials on and on until `done`. Every single answer must be a session that is
    /// not over. Keeps the last one and tells how many there were.
    pub(super) async fn steadily(
        &mut self,
        pod: &Pod,
        ask: Ask,
        mut done: impl FnMut(&Session) -> bool,
    ) -> anyhow::Result<Session> {
        let deadline = Instant::now() + PATIENCE;
        for count in 1_u32.. {
            let reply = self.stage.ask(pod, &ask).await;
            let session = reply.session();
            match session {
                Ok(session) if done(&session) => {
                    self.note(format!(
                        "asked {count} times meanwhile: always a living session"
                    ));
                    self.keep(pod, &ask, &reply);
                    return Ok(session);
                }
                Ok(_) if Instant::now() < deadline => sleep(PACE).await,
                other => {
                    self.keep(pod, &ask, &reply);
                    other.with_context(|| format!("answer {count}"))?;
                    break;
                }
            }
        }
        anyhow::bail!("it did not happen within {PATIENCE:?}")
    }

    /// Waits for something that pods don't see.
    pub(super) async fn wait<T>(
        &self,
        what: &str,
        look: impl Fn() -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(seen) = look() {
                return Ok(seen);
            }
            ensure!(
                Instant::now() < deadline,
                "{what} did not come within {PATIENCE:?}"
            );
            sleep(PACE).await;
        }
    }

    /// Tells what happens beside the requests.
    pub(super) fn note(&mut self, note: String) {
        self.screen.note(&note);
        self.notes.push(note);
    }

    /// The last request that was kept, as typed in the pod.
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
