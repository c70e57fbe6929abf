//! Proof from inside a pod's network namespace that the metadata address leads to the agent, or
//! nowhere, and never to the node's own metadata.

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

use rolegate_core::redirect::{METADATA_V4, METADATA_V6};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

/// A response header by which the agent is known even where its `/healthz` is not well.
pub const AGENT_HEADER: &str = "rolegate-agent";
/// Where container runtimes keep the pods' network namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// How long connecting and answering may take, each.
const LIMIT: Duration = Duration::from_secs(1);
/// Bytes of an answer that are read.
const MAX_ANSWER: u64 = 8 * 1024;

/// The result of a check in one word, the value of label and field `state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckState {
    /// The agent answers at a metadata address, and nothing else does.
    Ok,
    /// Nothing answers.
    Blocked,
    /// Something that is not the agent answers.
    Open,
}

impl CheckState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Blocked, Self::Open];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Blocked => "blocked",
            Self::Open => "open",
        }
    }
}

/// Where the metadata address leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// To the agent.
    Redirected,
    /// Nowhere: no answer comes out of it. The reason is for people.
    Blocked(String),
    /// To something that answers and isn't the agent: pods can get the node's role.
    Open(String),
}

/// Both metadata addresses, seen from one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckResult {
    /// 169.254.169.254
    pub v4: Outcome,
    /// fd00:ec2::254
    pub v6: Outcome,
}

impl CheckResult {
    /// Both addresses in one word. One address at which the agent answers is enough: where pods have
    /// no IPv6, or no IPv4, the other address is blocked.
    pub fn state(&self) -> CheckState {
        match [self.v4.state(), self.v6.state()] {
            states if states.contains(&CheckState::Open) => CheckState::Open,
            states if states.contains(&CheckState::Ok) => CheckState::Ok,
            _ => CheckState::Blocked,
        }
    }

    /// Whether something other than the agent answers.
    pub fn is_open(&self) -> bool {
        self.state() == CheckState::Open
    }
}

impl Outcome {
    /// The outcome in one word.
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

/// Why a namespace could not be looked at from inside.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The file can't be opened.
    #[error("cannot open the network namespace {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel doesn't let us in.
    #[error(
        "cannot enter the network namespace {}: {source}; this takes the capability SYS_ADMIN",
        path.display()
    )]
    Enter {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No thread could be had.
    #[error("cannot start a thread for the check: {0}")]
    Thread(io::Error),
}

/// Asks both metadata addresses for the agent's health, from inside the network namespace at
/// `netns`, or from here. Takes two seconds at most.
///
/// # Errors
/// When the namespace can't be entered.
pub async fn probe(netns: Option<&Path>) -> Result<CheckResult, CheckError> {
    let netns = netns.map(Path::to_owned);
    let (answer, result) = oneshot::channel();
    // A thread of its own: one that has entered a namespace is of no use to anyone else.
    thread::Builder::new()
        .name("redirect-check".into())
        .spawn(move || {
            let _ = answer.send(enter(netns.as_deref()).map(|()| look()));
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

/// Both addresses at once; a thread inherits the namespace of the one that starts it.
fn look() -> CheckResult {
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
    let stream = match TcpStream::connect_timeout(&address, LIMIT) {
        Ok(stream) => stream,
        Err(error) => return Outcome::Blocked(error.to_string()),
    };
    match exchange(stream, metadata) {
        Ok(answer) if answer.is_empty() => Outcome::Blocked("closed without an answer".into()),
        Ok(answer) if is_agent(&answer) => Outcome::Redirected,
        Ok(answer) => Outcome::Open(describe(&answer)),
        // Accepted and then silent: nothing came out, which is what matters here.
        Err(error) => Outcome::Blocked(format!("no answer: {error}")),
    }
}

fn exchange(mut stream: TcpStream, metadata: IpAddr) -> io::Result<Vec<u8>> {
    let host = match metadata {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let until = Instant::now() + LIMIT;
    stream.set_write_timeout(Some(LIMIT))?;
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

/// Whether an answer is the agent's: its own header, or the JSON that kube2iam's health has too.
/// Real metadata services answer this path with 404.
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

/// The first line of what answered, safe to print.
fn describe(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let line: String = text
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(80)
        .collect();
    format!("something that is not the agent answers: {line:?}")
}

/// Looks from one pod's namespace after the other, in turn.
#[derive(Debug)]
pub struct SelfCheck {
    dir: PathBuf,
    last: Option<OsString>,
}

impl SelfCheck {
    /// Looks from the namespaces in `dir`, usually [`NETNS_DIR`].
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            last: None,
        }
    }

    /// Looks from the next namespace; nothing where there is none but this host's own.
    ///
    /// # Errors
    /// When the directory can't be read, or the namespace not be entered (a pod that has just
    /// ended is such a case).
    pub async fn next(&mut self) -> Result<Option<(PathBuf, CheckResult)>, CheckError> {
        let Some(path) = self.pick()? else {
            return Ok(None);
        };
        let result = probe(Some(&path)).await?;
        Ok(Some((path, result)))
    }

    fn pick(&mut self) -> Result<Option<PathBuf>, CheckError> {
        let open = |source| CheckError::Open {
            path: self.dir.clone(),
            source,
        };
        let own = fs::metadata("/proc/thread-self/ns/net").map_err(open)?;
        let mut names = fs::read_dir(&self.dir)
            .map_err(open)?
            .filter_map(Result::ok)
            .filter(|entry| {
                fs::metadata(entry.path())
                    .is_ok_and(|file| (file.dev(), file.ino()) != (own.dev(), own.ino()))
            })
            .map(|entry| entry.file_name())
            .collect::<Vec<_>>();
        names.sort();
        let next = names
            .iter()
            .find(|name| Some(*name) > self.last.as_ref())
            .or(names.first())
            .cloned();
        self.last.clone_from(&next);
        Ok(next.map(|name| self.dir.join(name)))
    }
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
}
