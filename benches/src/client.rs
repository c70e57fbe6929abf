//! A connection that repeats the same prepared request, from its own address, which identifies a
//! pod for the agent. It parses only the end and the status of a response, so that requests use
//! little CPU time.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::stand_ins::address;
use crate::transport::{Tls, Transport};

/// Maximum size of a response's head and body, in bytes.
const MAX_RESPONSE_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 32;
/// Timeout of a response.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A keep-alive connection of one pod, or of the API server.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) transport: Transport,
    pod: u32,
    request: Vec<u8>,
    answer: Vec<u8>,
    filled: usize,
    pub(crate) begun: Instant,
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'a str, &'a [u8])>,
    pub(crate) body: &'a [u8],
}

/// Opens `count` connections to `server`, distributed among `pods`.
pub(crate) fn open(
    server: SocketAddr,
    pods: Range<u32>,
    count: usize,
    path: impl Fn(u32) -> String,
) -> anyhow::Result<Vec<Client>> {
    pods.cycle()
        .take(count)
        .map(|pod| Client::open(server, pod, None, get(&path(pod))))
        .collect()
}

fn get(path: &str) -> Vec<u8> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: rolegate-bench\r\n\
         Accept: */*\r\n\r\n"
    );
    request.into_bytes()
}

impl Client {
    /// Opens a connection of `pod` that sends `request`, head and body.
    pub(crate) fn open(
        server: SocketAddr,
        pod: u32,
        tls: Option<&Tls>,
        request: Vec<u8>,
    ) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
        socket.bind(&SocketAddr::from((address(pod), 0)).into())?;
        socket
            .connect_timeout(&SockAddr::from(server), RESPONSE_TIMEOUT)
            .with_context(|| format!("cannot connect to {server}"))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
        Ok(Self {
            transport: Transport::new(socket.into(), tls)?,
            pod,
            request,
            answer: vec![0; MAX_RESPONSE_BYTES],
            filled: 0,
            begun: Instant::now(),
        })
    }

    /// Sends the request and drops the last response. The latency counts from `now`.
    pub(crate) fn send(&mut self, now: Instant) -> anyhow::Result<()> {
        self.begun = now;
        self.filled = 0;
        self.transport.send(&self.request)
    }

    /// Reads available data. Returns the status once the response is complete.
    pub(crate) fn receive(&mut self) -> anyhow::Result<Option<u16>> {
        let room = self.answer.get_mut(self.filled..).unwrap_or_default();
        ensure!(
            !room.is_empty(),
            "a response is longer than {MAX_RESPONSE_BYTES} bytes"
        );
        match self.transport.receive(room) {
            Ok(0) => bail!("the server closed a connection of pod {}", self.pod),
            Ok(count) => self.filled += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        Ok(parse(self.received(), &mut headers)?.map(|(status, _)| status))
    }

    /// Returns the last response, which must have this status.
    pub(crate) fn answered(&self, status: u16) -> anyhow::Result<Answer<'_>> {
        let answer = self.answer()?;
        ensure!(
            answer.status == status,
            "pod {} got status {} instead of {status}: {}",
            self.pod,
            answer.status,
            String::from_utf8_lossy(answer.body)
        );
        Ok(answer)
    }

    /// Returns the last response.
    pub(crate) fn answer(&self) -> anyhow::Result<Answer<'_>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let (status, body) =
            parse(self.received(), &mut headers)?.context("incomplete response")?;
        Ok(Answer {
            status,
            headers: headers
                .iter()
                .take_while(|header| !header.name.is_empty())
                .map(|header| (header.name, header.value))
                .collect(),
            body: self.received().get(body).unwrap_or_default(),
        })
    }

    fn received(&self) -> &[u8] {
        self.answer.get(..self.filled).unwrap_or_default()
    }
}

/// Parses the status and the position of the body of a complete response.
fn parse<'a>(
    bytes: &'a [u8],
    headers: &mut [httparse::Header<'a>],
) -> anyhow::Result<Option<(u16, Range<usize>)>> {
    let mut response = httparse::Response::new(headers);
    let httparse::Status::Complete(head) = response.parse(bytes)? else {
        return Ok(None);
    };
    let status = response.code.context("a response without a status")?;
    let length: usize = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
        .context("a response without Content-Length")?;
    let end = head.saturating_add(length);
    ensure!(
        bytes.len() <= end,
        "the response is longer than its Content-Length"
    );
    Ok((bytes.len() == end).then_some((status, head..end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> anyhow::Result<Option<(u16, Range<usize>)>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        parse(text.as_bytes(), &mut headers)
    }

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let whole = "HTTP/1.1 403 Forbidden\r\ncontent-length: 5\r\n\r\nsorry";
        for end in 0..whole.len() {
            assert_eq!(parsed(&whole[..end]).unwrap(), None, "{end}");
        }
        let (status, body) = parsed(whole).unwrap().unwrap();
        assert_eq!((status, &whole[body]), (403, "sorry"));
    }

    #[test]
    fn what_no_server_may_send_is_told() {
        assert!(parsed("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabc").is_err());
        assert!(parsed("HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(parsed("nonsense\r\n\r\n").is_err());
    }
}
