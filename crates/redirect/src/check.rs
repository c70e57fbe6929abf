//! A test from inside a pod's network namespace that the metadata address leads to the agent, or
//! nowhere, and never to the node's own metadata service.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::rules::{METADATA_V4, METADATA_V6};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

/// A response header that identifies the agent even if its `/healthz` reports an error.
pub const AGENT_HEADER: &str = "rolegate-agent";
/// The directory in which container runtimes keep pods' network namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// Timeout of connecting, and of the response.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum size of a response, in bytes.
const MAX_ANSWER: u64 = 8 * 1024;

/// The result of a check, the value of the label and field `state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckState {
    /// The agent responds at a metadata address, and no other server does.
    Ok,
    /// No server responds.
    Blocked,
    /// A server other than the agent responds.
    Open,
}

impl CheckState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Blocked, Self::Open];

    /// Returns the label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Blocked => "blocked",
            Self::Open => "open",
        }
    }
}

/// The target of a metadata address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The agent.
    Redirected,
    /// No server: there is no response. The reason is for messages.
    Blocked(String),
    /// A server other than the agent: pods can get the node's role.
    Open(String),
}

/// The targets of both metadata addresses, from one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckResult {
    /// 169.254.169.254
    pub v4: Outcome,
    /// fd00:ec2::254
    pub v6: Outcome,
}

impl CheckResult {
    /// Returns the state of both addresses. The agent's response at one address is enough: without
    /// IPv6 or IPv4 in pods, the other address is blocked.
    pub fn state(&self) -> CheckState {
        match [self.v4.state(), self.v6.state()] {
            states if states.contains(&CheckState::Open) => CheckState::Open,
            states if states.contains(&CheckState::Ok) => CheckState::Ok,
            _ => CheckState::Blocked,
        }
    }

    /// Returns whether a server other than the agent responds.
    pub fn is_open(&self) -> bool {
        self.state() == CheckState::Open
    }
}

impl Outcome {
    /// Returns the state of the outcome.
    pub fn state(&self) -> CheckState {
        match self {
            Self::Redirected => CheckState::Ok,
            Self::Blocked(_) => CheckState::Blocked,
            Self::Open(_) => CheckState::Open,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redirected => f.write_str("leads to rolegate"),
            Self::Blocked(why) => write!(f, "leads nowhere ({why})"),
            Self::Open(why) => write!(f, "IS OPEN: {why}"),
        }
    }
}

impl fmt::Display for CheckResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "169.254.169.254 {}; fd00:ec2::254 {}", self.v4, self.v6)
    }
}

/// The reason why a test could not run in a namespace.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The file cannot be opened.
    #[error("cannot open the network namespace {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The namespace cannot be entered.
    #[error(
        "cannot enter the network namespace {}: {source}; this requires the capability SYS_ADMIN",
        path.display()
    )]
    Enter {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No thread could be started.
    #[error("cannot start a thread for the check: {0}")]
    Thread(io::Error),
}

/// Requests the agent's health at both metadata addresses, from inside the network namespace at
/// `netns`, or from the current one. It takes at most two seconds.
///
/// # Errors
/// Returns an error if the namespace cannot be entered.
pub async fn probe(netns: Option<&Path>) -> Result<CheckResult, CheckError> {
    let netns = netns.map(Path::to_owned);
    let (answer, result) = oneshot::channel();
    // Uses its own thread, since a thread that has entered a namespace cannot be reused.
    thread::Builder::new()
        .name("redirect-check".into())
        .spawn(move || {
            let _ = answer.send(enter(netns.as_deref()).map(|()| probe_both()));
        })
        .map_err(CheckError::Thread)?;
    result
        .await
        .unwrap_or_else(|_| Err(CheckError::Thread(io::Error::other("it ended early"))))
}

fn enter(netns: Option<&Path>) -> Result<(), CheckError> {
    let Some(path) = netns else { return Ok(()) };
    let file = File::open(path).map_err(|source| CheckError::Open {
        path: path.to_owned(),
        source,
    })?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|source| {
        CheckError::Enter {
            path: path.to_owned(),
            source: source.into(),
        }
    })
}

/// Tests both addresses concurrently. A thread inherits the namespace of its creator.
fn probe_both() -> CheckResult {
    thread::scope(|scope| {
        let v6 = scope.spawn(|| ask(METADATA_V6.into()));
        CheckResult {
            v4: ask(METADATA_V4.into()),
            v6: v6
                .join()
                .unwrap_or_else(|_| Outcome::Blocked("the check failed".into())),
        }
    })
}

fn ask(metadata: IpAddr) -> Outcome {
    let address = SocketAddr::new(metadata, 80);
    let stream = match TcpStream::connect_timeout(&address, PROBE_TIMEOUT) {
        Ok(stream) => stream,
        Err(error) => return Outcome::Blocked(error.to_string()),
    };
    match exchange(stream, metadata) {
        Ok(answer) if answer.is_empty() => Outcome::Blocked("closed without a response".into()),
        Ok(answer) if is_agent(&answer) => Outcome::Redirected,
        Ok(answer) => Outcome::Open(describe(&answer)),
        // Accepted without a response: no data was returned, which is what matters.
        Err(error) => Outcome::Blocked(format!("no response: {error}")),
    }
}

fn exchange(mut stream: TcpStream, metadata: IpAddr) -> io::Result<Vec<u8>> {
    let host = match metadata {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let until = Instant::now() + PROBE_TIMEOUT;
    stream.set_write_timeout(Some(PROBE_TIMEOUT))?;
    stream.write_all(
        format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || answer.len() as u64 >= MAX_ANSWER {
            break;
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(chunk.get(..n).unwrap_or_default()),
            Err(_) if !answer.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// Returns whether a response is the agent's: by its own header, or by the JSON of kube2iam's
/// health page. Real metadata services respond to this path with 404.
fn is_agent(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    if lines
        .filter_map(|line| line.split_once(':'))
        .any(|(name, _)| name.trim().eq_ignore_ascii_case(AGENT_HEADER))
    {
        return true;
    }
    let host_ip = |value: serde_json::Value| value.get("hostIP").is_some();
    status.split(' ').nth(1) == Some("200") && serde_json::from_str(body).is_ok_and(host_ip)
}

/// Returns the first line of a response, safe to print.
fn describe(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let line: String = text
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(80)
        .collect();
    format!("a server other than the agent responds: {line:?}")
}

/// Tests from the pods' namespaces in turn.
#[derive(Debug)]
pub struct SelfCheck {
    dir: PathBuf,
    last: Option<OsString>,
}

impl SelfCheck {
    /// Creates a check from the namespaces in `dir`, usually [`NETNS_DIR`].
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            last: None,
        }
    }

    /// Tests from the next namespace. Returns `None` if this host's own namespace is the only one.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be read, or the namespace cannot be entered, such
    /// as when the pod has just exited.
    pub async fn next(&mut self) -> Result<Option<(PathBuf, CheckResult)>, CheckError> {
        let Some(path) = self.pick()? else {
            return Ok(None);
        };
        let result = probe(Some(&path)).await?;
        Ok(Some((path, result)))
    }

    fn pick(&mut self) -> Result<Option<PathBuf>, CheckError> {
        let names = names(&self.dir)?;
        let next = names
            .iter()
            .find(|name| Some(*name) > self.last.as_ref())
            .or(names.first())
            .cloned();
        self.last.clone_from(&next);
        Ok(next.map(|name| self.dir.join(name)))
    }
}

/// Returns the network namespaces in `dir`, usually [`NETNS_DIR`], without this host's own.
///
/// # Errors
/// Returns [`CheckError::Open`] if the directory cannot be read.
pub fn pod_namespaces(dir: &Path) -> Result<Vec<PathBuf>, CheckError> {
    let names = names(dir)?;
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// Returns the sorted names of the namespaces in a directory, without this host's own.
fn names(dir: &Path) -> Result<Vec<OsString>, CheckError> {
    let open = |source| CheckError::Open {
        path: dir.to_owned(),
        source,
    };
    let own = fs::metadata("/proc/thread-self/ns/net").map_err(open)?;
    let mut names = fs::read_dir(dir)
        .map_err(open)?
        .filter_map(Result::ok)
        .filter(|entry| {
            fs::metadata(entry.path())
                .is_ok_and(|file| (file.dev(), file.ino()) != (own.dev(), own.ino()))
        })
        .map(|entry| entry.file_name())
        .collect::<Vec<_>>();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agent_is_taken_for_the_agent() {
        let agent = |answer: &str| is_agent(answer.as_bytes());
        assert!(agent(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"hostIP\":\"10.0.0.1\",\"instanceId\":\"i-1\"}"
        ));
        assert!(agent(
            "HTTP/1.1 500 Internal Server Error\r\nRolegate-Agent: 1\r\n\r\nno metadata"
        ));
        assert!(!agent("HTTP/1.1 404 Not Found\r\n\r\n<html>hostIP</html>"));
        assert!(!agent("HTTP/1.1 200 OK\r\n\r\n{\"Code\":\"Success\"}"));
        assert!(!agent(
            "HTTP/1.1 404 Not Found\r\n\r\n{\"hostIP\":\"10.0.0.1\"}"
        ));
        assert!(!agent("SSH-2.0-x\r\n"));
    }

    #[test]
    fn what_answers_is_described_safely() {
        let text = describe(b"HTTP/1.1 200 \x1b[31mOK\r\nx: y\r\n");
        assert!(!text.contains('\x1b') && text.contains("200"), "{text}");
    }

    #[tokio::test]
    async fn a_namespace_that_is_gone_is_said_to_be() {
        let error = probe(Some(Path::new("/run/netns/no-such")))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("/run/netns/no-such"), "{error}");
    }

    #[test]
    fn a_result_says_where_each_address_leads() {
        let names = CheckState::ALL.map(CheckState::as_str);
        assert_eq!(names, ["ok", "blocked", "open"]);
        let result = CheckResult {
            v4: Outcome::Redirected,
            v6: Outcome::Blocked("no route".into()),
        };
        assert_eq!(
            result.to_string(),
            "169.254.169.254 leads to rolegate; fd00:ec2::254 leads nowhere (no route)"
        );
        let open = Outcome::Open("the node answers".into());
        assert_eq!(open.to_string(), "IS OPEN: the node answers");
    }

    /// Returns the request that a server gets, and the client's result for these chunks. The server
    /// closes afterwards if `closes`.
    fn exchanged(chunks: &[&[u8]], closes: bool) -> (String, io::Result<Vec<u8>>) {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (mut served, _) = server.accept().unwrap();
        // Written first: the end does not depend on how fast this test runs.
        for chunk in chunks {
            served.write_all(chunk).unwrap();
        }
        if closes {
            served.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let answer = exchange(stream, METADATA_V6.into());
        let mut request = String::new();
        // Fails if the client left some of the response unread.
        let _ = served.read_to_string(&mut request);
        (request, answer)
    }

    /// Returns true once an attempt matches: on a busy machine one may reach its timeout first.
    fn at_last(matches: impl Fn() -> bool) -> bool {
        (0..60).any(|_| matches())
    }

    #[test]
    fn the_health_page_is_requested_from_the_metadata_address() {
        const REQUEST: &str =
            "GET /healthz HTTP/1.1\r\nHost: [fd00:ec2::254]\r\nConnection: close\r\n\r\n";
        let matches = || {
            let (request, answer) = exchanged(&[b"HTTP/1.1 ", b"200 OK\r\n"], true);
            request == REQUEST && answer.is_ok_and(|answer| answer == b"HTTP/1.1 200 OK\r\n")
        };
        assert!(at_last(matches));
    }

    #[test]
    fn a_response_without_end_is_read_to_a_limit() {
        let limited = || {
            let (_, answer) = exchanged(&[&[b'x'; 4 * MAX_ANSWER as usize]], false);
            let length = answer.map_or(0, |answer| answer.len() as u64);
            assert!(length < MAX_ANSWER + 1024, "{length}");
            length >= MAX_ANSWER
        };
        assert!(at_last(limited));
        // What was read before the timeout is the response.
        let unfinished = || {
            let (_, answer) = exchanged(&[b"HTTP/1.1 200 OK"], false);
            answer.is_ok_and(|answer| answer == b"HTTP/1.1 200 OK")
        };
        assert!(at_last(unfinished));
    }

    #[test]
    fn silence_is_an_error_and_a_close_is_an_empty_response() {
        assert!(at_last(|| exchanged(&[], false).1.is_err()));
        assert!(exchanged(&[], true).1.is_ok_and(|answer| answer.is_empty()));
    }

    #[test]
    fn one_open_address_makes_the_result_open() {
        let (redirected, blocked) = (Outcome::Redirected, Outcome::Blocked("no".into()));
        let open = Outcome::Open("yes".into());
        for (v4, v6, state) in [
            (&redirected, &redirected, CheckState::Ok),
            (&redirected, &blocked, CheckState::Ok),
            (&blocked, &redirected, CheckState::Ok),
            (&blocked, &blocked, CheckState::Blocked),
            (&open, &redirected, CheckState::Open),
            (&blocked, &open, CheckState::Open),
        ] {
            let result = CheckResult {
                v4: v4.clone(),
                v6: v6.clone(),
            };
            assert_eq!(result.state(), state, "{result}");
            assert_eq!(result.is_open(), state == CheckState::Open);
        }
    }

    #[test]
    fn namespaces_take_turns_without_the_hosts_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut check = SelfCheck::new(folder.path());
        assert_eq!(check.pick().unwrap(), None);
        let own = folder.path().join("b-own");
        std::os::unix::fs::symlink("/proc/self/ns/net", own).unwrap();
        assert_eq!(check.pick().unwrap(), None);
        for name in ["a", "c", "d"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let mut next = || {
            let path = check.pick().unwrap().unwrap();
            path.file_name().unwrap().to_owned()
        };
        assert_eq!([next(), next(), next(), next()], ["a", "c", "d", "a"]);
        fs::remove_file(folder.path().join("c")).unwrap();
        assert_eq!([next(), next()], ["d", "a"]);
        assert!(SelfCheck::new("/no-such-folder").pick().is_err());
        let all = pod_namespaces(folder.path()).unwrap();
        assert_eq!(all, [folder.path().join("a"), folder.path().join("d")]);
    }
}
