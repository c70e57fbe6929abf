//! The entry paths of the EKS Pod Identity Agent's manifest, without the lines that it lacks.
#![cfg(test)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn original_manifest_starts_names_its_lines_and_is_not_ready() {
    // The listener is dropped, so that the process can bind its port.
    let port = {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        free.local_addr().unwrap().port()
    };
    let child = Command::new(env!("CARGO_BIN_EXE_rolegate"))
        .arg0("/go-runner")
        .args(["/eks-pod-identity-agent", "server", "--port", "80"])
        .args(["--cluster-name", "prod", "--probe-port", &port.to_string()])
        .env_clear()
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut process = Process(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    let answer = loop {
        match get(port, "/readyz") {
            Ok(answer) => break answer,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => std::thread::yield_now(),
        }
    };
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(get(port, "/healthz").unwrap().starts_with("HTTP/1.1 200"));
    let _ = process.0.kill();
    let mut told = String::new();
    let stdout = process.0.stdout.as_mut().unwrap();
    stdout.read_to_string(&mut told).unwrap();
    for line in [
        "automountServiceAccountToken: true",
        "fieldPath: spec.nodeName",
    ] {
        assert!(told.contains(line), "{told}");
    }
}
