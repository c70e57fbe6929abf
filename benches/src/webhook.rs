//! The admission webhook and its client, the API server with its few persistent connections.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, ensure};
use rcgen::generate_simple_self_signed;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::harness::Settings;
use crate::load;
use crate::rolegate::{Rolegate, free_address};
use crate::stand_ins::{BASE_ROLE_ARN, Order, StandIns};
use crate::transport::Tls;

/// The name in the certificate.
const SERVER: &str = "rolegate-admission.rolegate.svc";

/// A ready webhook and the cluster that it watches.
#[derive(Debug)]
pub(crate) struct Webhook {
    process: Rolegate,
    address: SocketAddr,
    tls: Tls,
    /// The directory of its certificate.
    _folder: TempDir,
    _stand_ins: StandIns,
}

impl Webhook {
    /// Starts it with these layers, after these orders have been executed.
    pub(crate) fn start(
        settings: &Settings,
        orders: &[Order],
        layers: &str,
    ) -> anyhow::Result<Self> {
        let mut stand_ins = StandIns::start()?;
        for order in orders {
            stand_ins.order(order)?;
        }
        let folder = tempfile::tempdir()?;
        let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let pair = generate_simple_self_signed([SERVER.to_owned()])?;
        std::fs::write(&certificate, pair.cert.pem())?;
        std::fs::write(&key, pair.signing_key.serialize_pem())?;
        let (address, admin) = (free_address()?, free_address()?);
        let mut command = Command::new(&settings.rolegate);
        command
            .arg("admission")
            .arg(format!("--api-server=http://{}", stand_ins.addresses.api))
            .env("ROLEGATE_API_TOKEN", "x")
            .args(["--insecure", "--cluster-config=off"])
            .arg(format!("--layer={layers}"))
            .arg(format!("--base-role-arn={BASE_ROLE_ARN}"))
            .arg(format!("--listen-address={address}"))
            .arg(format!("--metrics-address={admin}"))
            .arg("--certificate=files")
            .arg("--tls-cert")
            .arg(&certificate)
            .arg("--tls-key")
            .arg(&key)
            .env_clear();
        Ok(Self {
            process: Rolegate::start(&mut command, admin)?,
            address,
            tls: Tls::trusting(&certificate, SERVER)?,
            _folder: folder,
            _stand_ins: stand_ins,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Opens one connection for each of these reviews.
    pub(crate) fn clients(
        &self,
        reviews: impl IntoIterator<Item = Value>,
    ) -> anyhow::Result<Vec<Client>> {
        reviews
            .into_iter()
            .map(|review| Client::open(self.address, 0, Some(&self.tls), post(&review)))
            .collect()
    }

    /// Checks that the review is denied, and so that the rules are in force.
    pub(crate) fn refuses(&self, review: Value) -> anyhow::Result<()> {
        let mut clients = self.clients([review])?;
        load::burst(&mut clients, || Ok(()))?;
        check(&clients, false)
    }
}

/// Checks that each of the last responses has this result.
pub(crate) fn check(clients: &[Client], allowed: bool) -> anyhow::Result<()> {
    for client in clients {
        let body = client.answered(200)?.body;
        let answer: Value = serde_json::from_slice(body)?;
        let found = answer.pointer("/response/allowed").and_then(Value::as_bool);
        ensure!(
            found.context("not a webhook response")? == allowed,
            "a review should have allowed: {allowed}, but got {}",
            String::from_utf8_lossy(body)
        );
    }
    Ok(())
}

/// Returns the request that the API server sends for the review.
fn post(review: &Value) -> Vec<u8> {
    let body = review.to_string();
    let head = format!(
        "POST /validate?timeout=10s HTTP/1.1\r\nHost: {SERVER}:443\r\nUser-Agent: \
         kube-apiserver-admission\r\nContent-Length: {}\r\nAccept: application/json, */*\r\n\
         Content-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}
