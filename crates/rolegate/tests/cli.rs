//! Tests of the whole command line with the real binary: help, suggestions, errors, formats, and
//! reads of a cluster.
#![cfg(test)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

const USAGE: Option<i32> = Some(64);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    outcome(command(arguments).output().unwrap())
}

fn outcome(output: Output) -> (Option<i32>, String, String) {
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_word_at_the_wrong_level_is_explained() {
    for (arguments, tip) in [
        (
            &["explain", "pod/x"][..],
            "did you mean `rolegate policy explain`?",
        ),
        (&["simulate"], "did you mean `rolegate policy simulate`?"),
        (&["policy", "ledger"], "did you mean `rolegate ledger`?"),
        (&["explian"], "did you mean `rolegate policy explain`?"),
        (&["adgent"], "did you mean `rolegate agent`?"),
    ] {
        let (code, _, text) = run(arguments);
        assert_eq!(code, USAGE, "{text}");
        assert!(text.contains(tip), "{arguments:?}: {text}");
    }
    let (_, _, text) = run(&["zzz"]);
    assert!(!text.contains("did you mean"), "{text}");
}

#[test]
fn an_unknown_flag_without_a_command_is_not_only_the_agents() {
    let (code, _, text) = run(&["--man"]);
    assert_eq!(code, USAGE);
    assert!(
        text.contains("'--man'") && text.contains("Usage: rolegate <COMMAND>"),
        "{text}"
    );
    let (_, _, text) = run(&["--replace"]);
    assert!(
        text.contains("`rolegate policy simulate` has this flag"),
        "{text}"
    );
    let (_, _, text) = run(&["--base-role-arnn=x"]);
    assert!(text.contains("similar flag '--base-role-arn'"), "{text}");
    // Flags of the agent still belong to the agent.
    let (_, _, text) = run(&["--base-role-arn=x", "--man"]);
    assert!(text.contains("rolegate agent"), "{text}");
}

#[test]
fn every_command_tells_the_version_of_the_program() {
    let version = format!("rolegate {} (commit ", env!("CARGO_PKG_VERSION"));
    for arguments in [
        &["version"][..],
        &["--version"],
        &["agent", "--version"],
        &["policy", "explain", "--version"],
    ] {
        let (code, text, _) = run(arguments);
        assert!(
            code == Some(0) && text.starts_with(&version),
            "{arguments:?}: {text}"
        );
    }
    let (_, text, _) = run(&["version", "-o", "json"]);
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["version"], env!("CARGO_PKG_VERSION"));
    assert!(told["date"].is_string(), "{text}");
    assert_eq!(run(&["version", "-o", "name"]).0, USAGE);
}

#[test]
fn kubectl_runs_it_as_a_plug_in() {
    let called =
        |name: &str, arguments: &[&str]| outcome(command(arguments).arg0(name).output().unwrap());
    let plug_in = "/usr/local/bin/kubectl-rolegate";
    let (code, help, _) = called(plug_in, &["policy", "explain", "--help"]);
    assert_eq!(code, Some(0));
    assert!(
        help.contains("Usage: kubectl rolegate policy explain"),
        "{help}"
    );
    let (code, _, text) = called(plug_in, &["policy", "explain"]);
    assert_eq!(code, USAGE);
    assert!(
        text.ends_with("try 'kubectl rolegate policy explain --help'.\n"),
        "{text}"
    );
    let (_, version, _) = called(plug_in, &["--version"]);
    assert!(version.starts_with("rolegate "), "{version}");
    // Links of other names are for manifests of kube2iam and kiam.
    let (_, help, _) = called("/kiam", &["server", "--help"]);
    assert!(help.contains("Usage: rolegate broker"), "{help}");
}

#[test]
fn shells_and_man_know_all_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = run(&["completion", shell]);
        assert_eq!(code, Some(0));
        for word in ["explain", "host-interface"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let (code, text, _) = run(&["reference", "--man", path]);
    assert_eq!((code, &*text), (Some(0), ""));
    for (page, word) in [
        ("rolegate.1", "rolegate\\-agent(1)"),
        ("rolegate-policy-explain.1", "Explain why"),
    ] {
        let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(word), "{page}: {text}");
    }
    let (code, _, text) = run(&["reference", "--man", &format!("{path}/nowhere")]);
    assert_eq!(code, Some(1));
    assert!(text.contains("nowhere"), "{text}");
}

#[test]
fn help_begins_with_what_has_to_be_set() {
    let (_, help, _) = run(&["agent", "--help"]);
    let flags = help.lines().filter_map(|line| {
        let line = line.strip_prefix("      ")?;
        line.starts_with("--")
            .then(|| line.split([' ', '=', '[']).next().unwrap())
    });
    let flags: Vec<_> = flags.take(4).collect();
    let first = [
        "--base-role-arn",
        "--host-interface",
        "--namespace-restrictions",
        "--layer",
    ];
    assert_eq!(flags, first);
}

#[test]
fn shared_flags_are_in_options_and_not_in_each_help() {
    let (code, options, _) = run(&["options"]);
    assert_eq!(code, Some(0));
    for flag in [
        "--kubeconfig",
        "--request-timeout",
        "--as-group",
        "--api-token-file",
        "--agent-daemonset",
        "--base-role-arn",
        "--iam-role-key",
        "--log-format",
    ] {
        assert_eq!(
            options.matches(&format!(" {flag} <")).count(),
            1,
            "{flag}: {options}"
        );
        let (_, help, _) = run(&["policy", "explain", "--help"]);
        assert!(!help.contains(&format!("{flag} <")), "{flag}: {help}");
        assert!(help.contains("rolegate options"), "{help}");
    }
    // Hidden flags still work, and a command's own flags stay.
    let (_, help, _) = run(&["policy", "test", "--help"]);
    assert!(
        help.contains("--verbose") && !help.contains("--kubeconfig"),
        "{help}"
    );
    let (_, help, _) = run(&["agent", "--help"]);
    assert!(
        !help.contains("--kubeconfig ") && help.contains("rolegate options"),
        "{help}"
    );
}

#[test]
fn errors_have_one_style_and_usage_names_the_help() {
    let (code, _, text) = run(&["policy", "explain"]);
    assert_eq!(code, USAGE);
    assert!(text.starts_with("error: an object is required"), "{text}");
    assert!(text.contains("--role"), "{text}");
    assert!(
        text.ends_with("try 'rolegate policy explain --help'.\n"),
        "{text}"
    );
    let (code, _, text) = run(&["policy", "suggest", "-f", "/nowhere"]);
    assert_eq!(code, Some(1));
    assert!(
        text.starts_with("error: ") && !text.contains("--help"),
        "{text}"
    );
    assert_eq!(text.matches("No such file").count(), 1, "{text}");
}

#[test]
fn fatal_errors_of_processes_are_json_where_the_log_is() {
    for arguments in [
        &["agent", "--log-format=json", "--app-port=x"][..],
        &["--log-format=json", "--no-such-flag"],
        &["broker", "--log-format=json", "--session-duration=1s"],
        &["controller", "--log-format=json", "--api-token=x"],
    ] {
        let (code, _, text) = run(arguments);
        assert_eq!(code, USAGE, "{arguments:?}: {text}");
        for line in text.lines() {
            let line: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|_| panic!("{text}"));
            assert!(!line.to_string().contains("\\u001b"), "{line}");
        }
    }
}

#[test]
fn a_token_is_taken_from_a_file_or_the_environment_only() {
    for process in ["agent", "broker", "admission", "controller"] {
        for flag in [&["--api-token=hidden"][..], &["--api-token", "hidden"]] {
            let (code, _, text) = run(&[&[process], flag].concat());
            assert_eq!(code, USAGE, "{process}: {text}");
            let says = text.contains("--api-token-file") && text.contains("ROLEGATE_API_TOKEN");
            assert!(says && !text.contains("hidden"), "{process}: {text}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "from-file\n").unwrap();
    let server = Refusing::start();
    let url = server.url();
    let path = file.display().to_string();
    run(&[
        "policy",
        "suggest",
        "--api-server",
        &url,
        "--api-token-file",
        &path,
    ]);
    let head = server.head();
    assert!(head.contains("authorization: Bearer from-file"), "{head}");
    let server = Refusing::start();
    let url = server.url();
    let mut suggest = command(&["policy", "suggest", "--api-server", &url]);
    suggest
        .env("ROLEGATE_API_TOKEN", "from-environment")
        .output()
        .unwrap();
    let head = server.head();
    assert!(
        head.contains("authorization: Bearer from-environment"),
        "{head}"
    );
    std::fs::write(&file, "\n").unwrap();
    let (code, _, text) = run(&[
        "policy",
        "suggest",
        "--api-server",
        &url,
        "--api-token-file",
        &path,
    ]);
    assert_eq!(code, Some(1));
    assert!(text.contains("token: it is empty"), "{text}");
}

#[test]
fn reads_are_made_as_somebody_else_and_shown() {
    let server = Refusing::start();
    let url = server.url();
    let arguments = [
        "policy",
        "suggest",
        "--api-server",
        &url,
        "--as=jane",
        "--as-group=a",
        "--as-group=b",
        "-v6",
    ];
    let (code, _, text) = run(&arguments);
    let head = server.head();
    assert_eq!(code, Some(1), "{text}");
    for header in [
        "impersonate-user: jane",
        "impersonate-group: a",
        "impersonate-group: b",
    ] {
        assert!(head.contains(header), "{header}: {head}");
    }
    assert!(
        text.contains(&format!("GET {url}/")) && text.contains(" 403 in "),
        "{text}"
    );
    let (code, _, text) = run(&["policy", "suggest", "--as-group=a"]);
    assert_eq!(code, USAGE, "{text}");
}

#[test]
fn a_request_has_a_limited_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // Connections are accepted, but no response is sent.
    let arguments = [
        "policy",
        "suggest",
        "--api-server",
        &url,
        "--request-timeout=200ms",
    ];
    let (code, _, text) = run(&arguments);
    assert_eq!(code, Some(1));
    assert!(text.contains("no response within 200 ms"), "{text}");
    drop(listener);
}

#[test]
fn a_closed_reader_ends_commands_quietly() {
    for arguments in [
        &["reference", "agent"][..],
        &["options"],
        &["completion", "bash"],
        &["policy", "export", "--format=crds"],
        &["policy", "--help"],
        &["demo", "--once", "--loopback"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = command(arguments);
        command.stdout(writer).stderr(Stdio::piped());
        let (code, _, text) = outcome(command.output().unwrap());
        assert_eq!((code, &*text), (Some(0), ""), "{arguments:?}");
    }
}

/// An API server that rejects one request and exits.
struct Refusing {
    address: SocketAddr,
    server: JoinHandle<String>,
}

impl Refusing {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let lines = lines.map_while(Result::ok);
            let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let body = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no","code":403}"#;
            // The client may be gone already.
            let _ = write!(
                stream,
                "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            head.join("\n")
        });
        Self { address, server }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the head of the request; empty without one.
    fn head(self) -> String {
        // The server waits for one connection.
        drop(TcpStream::connect(self.address));
        self.server.join().unwrap()
    }
}
