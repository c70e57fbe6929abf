//! The load generator: always one thread, so that compared servers get the same client power.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;

use crate::client::{Client, RESPONSE_TIMEOUT};
use crate::proc;

/// Maximum number of kernel events to read at once.
const BATCH: usize = 256;

/// A closed loop: after each response, the connection that has waited longest sends a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Closed {
    /// Requests in flight.
    pub(crate) in_flight: usize,
    /// The time before the measurement.
    pub(crate) warm_up: Duration,
    /// The time of the measurement.
    pub(crate) duration: Duration,
    /// The only valid status.
    pub(crate) status: u16,
    /// The server's process.
    pub(crate) pid: u32,
}

/// The measurements.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) wall: Duration,
    /// CPU time of the server.
    pub(crate) cpu: Duration,
    pub(crate) samples: Vec<Sample>,
}

/// One request; times are relative to the start of the run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) begun: Duration,
    pub(crate) took: Duration,
}

impl Run {
    pub(crate) fn per_second(&self) -> f64 {
        self.samples.len() as f64 / self.wall.as_secs_f64()
    }

    /// Microseconds.
    pub(crate) fn cpu_per_request(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.samples.len().max(1) as f64
    }

    pub(crate) fn latencies(&self) -> Latencies {
        Latencies::new(self.samples.iter().map(|sample| sample.took))
    }
}

/// Sorted latencies.
#[derive(Debug)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn new(latencies: impl IntoIterator<Item = Duration>) -> Self {
        let mut latencies: Vec<_> = latencies.into_iter().collect();
        latencies.sort_unstable();
        Self(latencies)
    }

    /// Returns the latency at this quantile (0 to 1).
    pub(crate) fn at(&self, part: f64) -> Duration {
        let rank = (part * self.0.len() as f64).ceil() as usize;
        let index = rank.saturating_sub(1);
        self.0.get(index).copied().unwrap_or_default()
    }

    pub(crate) fn slowest(&self) -> Duration {
        self.at(1.0)
    }
}

/// Sends requests on these connections in a closed loop.
pub(crate) fn closed(clients: &mut [Client], load: Closed) -> anyhow::Result<Run> {
    let mut poller = Poller::new(clients)?;
    let mut idle: VecDeque<usize> = (0..clients.len()).collect();
    let mut outstanding = 0;
    let start = Instant::now();
    while outstanding < load.in_flight
        && let Some(client) = idle.pop_front().and_then(|next| clients.get_mut(next))
    {
        client.send(Instant::now())?;
        outstanding += 1;
    }
    let mut measuring: Option<(Instant, Duration)> = None;
    let mut measured: Option<(Duration, Duration)> = None;
    let mut samples = Vec::with_capacity(1 << 18);
    while outstanding > 0 {
        let now = Instant::now();
        match measuring {
            None if now >= start + load.warm_up => measuring = Some((now, proc::cpu(load.pid)?)),
            Some((from, cpu)) if measured.is_none() && now >= from + load.duration => {
                measured = Some((now - from, proc::cpu(load.pid)? - cpu));
            }
            _ => {}
        }
        for index in poller.wait()? {
            let client = clients.get_mut(index).context("no such connection")?;
            let Some(status) = client.receive()? else {
                continue;
            };
            let now = Instant::now();
            if status != load.status {
                client.answered(load.status)?;
            }
            if measuring.is_some() && measured.is_none() {
                samples.push(Sample {
                    begun: client.begun - start,
                    took: now - client.begun,
                });
            }
            idle.push_back(index);
            let next = idle.pop_front().filter(|_| measured.is_none());
            match next.and_then(|next| clients.get_mut(next)) {
                Some(next) => next.send(now)?,
                None => outstanding -= 1,
            }
        }
    }
    let (wall, cpu) = measured.context("the load ended early")?;
    ensure!(!samples.is_empty(), "no request got a response");
    Ok(Run { wall, cpu, samples })
}

/// Sends one request on each connection at the same time, after `release`. Latencies count from
/// that time, in the order of the connections, which keep their responses.
pub(crate) fn burst(
    clients: &mut [Client],
    release: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Latencies> {
    let mut poller = Poller::new(clients)?;
    let now = Instant::now();
    release()?;
    for client in &mut *clients {
        client.send(now)?;
    }
    let mut latencies = Vec::with_capacity(clients.len());
    while latencies.len() < clients.len() {
        for index in poller.wait()? {
            let client = clients.get_mut(index).context("no such connection")?;
            if client.receive()?.is_some() {
                latencies.push(client.begun.elapsed());
            }
        }
    }
    Ok(Latencies::new(latencies))
}

struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    fn new(clients: &[Client]) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (index, client) in clients.iter().enumerate() {
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&epoll, &client.transport, data, epoll::EventFlags::IN)?;
        }
        Ok(Self {
            epoll,
            events: Vec::with_capacity(BATCH),
        })
    }

    /// Returns the readable connections.
    fn wait(&mut self) -> anyhow::Result<impl Iterator<Item = usize> + '_> {
        let timeout = Timespec::try_from(RESPONSE_TIMEOUT)?;
        self.events.clear();
        let room = rustix::buffer::spare_capacity(&mut self.events);
        let count = epoll::wait(&self.epoll, room, Some(&timeout))?;
        ensure!(count > 0, "no response for {RESPONSE_TIMEOUT:?}");
        Ok(self.events.iter().map(|event| event.data.u64() as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baseline::{self, Fixed};
    use crate::client;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let latencies = Latencies::new((1..=1000).rev().map(Duration::from_millis));
        let at = |part| latencies.at(part).as_millis();
        assert_eq!([at(0.5), at(0.99), at(0.999)], [500, 990, 999]);
        assert_eq!(latencies.slowest().as_millis(), 1000);
        assert_eq!(Latencies::new([]).slowest(), Duration::ZERO);
    }

    #[test]
    fn loads_and_bursts_take_the_right_status_only() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let answer = Fixed {
            status: 404,
            headers: vec![("x-who".into(), "bare".into())],
            body: "not found".into(),
        };
        let server = runtime.block_on(baseline::listen(answer)).unwrap();
        let mut clients = client::open(server, 0..2, 3, |_| "/".into()).unwrap();
        assert!(burst(&mut clients, || Ok(())).unwrap().slowest() > Duration::ZERO);
        let last = clients[2].answered(404).unwrap();
        assert_eq!(last.body, b"not found");
        assert!(last.headers.contains(&("x-who", b"bare")));
        let mut load = Closed {
            in_flight: 2,
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(20),
            status: 404,
            pid: std::process::id(),
        };
        let run = closed(&mut clients, load).unwrap();
        assert!(!run.samples.is_empty() && run.wall >= load.duration);
        load.status = 200;
        let error = closed(&mut clients, load).unwrap_err().to_string();
        assert!(error.contains("404 instead of 200: not found"), "{error}");
    }
}
