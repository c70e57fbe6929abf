//! `rolegate ledger`: asks a broker or an agent whose session is whose.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rolegate_standing::ledger::Record;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::flags::invalid;

/// How long the broker may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest page, bytes.
const PAGE: usize = 64 << 20;

/// What its help begins with.
pub(crate) const LONG_ABOUT: &str = "Tell which session went to which pod.\n\n\
Asks one broker for its ledger, newest entry first: the access key's ID, role, session name, times, the pod and \
the rules that allowed it. SENT is when it went to the pod's node, SERVED when the pod got it, as its agent \
says. It holds no secret. With --key, answers whose key it is that stands in a CloudTrail record. A broker's \
ledger is on its loopback, and each replica has its own: ask each, as in\n\n\
  kubectl -n rolegate-system exec POD -- rolegate ledger --key ASIA...\n\n\
The log has the same entries and lives longer. Exit code 1 where the key is in no entry.";

/// Of the table.
const COLUMNS: usize = 11;

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table for people
    Text,
    /// A JSON list
    Json,
}

/// Arguments of `rolegate ledger`.
#[derive(Debug, Args)]
pub(crate) struct LedgerArguments {
    /// Access key ID to look for, such as ASIA...
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Where the ledger is
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ROLEGATE_LEDGER_ADDRESS",
        default_value = "127.0.0.1:9091"
    )]
    address: SocketAddr,
    /// How the answer is written
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

/// Asks, and writes the answer.
pub(crate) fn run(arguments: &LedgerArguments) -> anyhow::Result<ExitCode> {
    if let Some(key) = &arguments.key {
        let good = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric());
        if !good {
            return Err(invalid(
                "--key: an access key's ID has letters and digits only",
            ));
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no threads can be started")?;
    let page = runtime.block_on(async {
        match timeout(PATIENCE, ask(arguments)).await {
            Ok(page) => page,
            Err(_) => bail!("{} does not answer", arguments.address),
        }
    })?;
    let records: Vec<Record> = serde_json::from_slice(&page)
        .with_context(|| format!("{} is no ledger of rolegate", arguments.address))?;
    let text = match arguments.output {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&records)?),
        Format::Text => table(&records),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    let unknown = arguments.key.is_some() && records.is_empty();
    if unknown {
        writeln!(
            std::io::stderr(),
            "rolegate: this ledger has no such key; ask the other replicas, or the log"
        )?;
    }
    Ok(ExitCode::from(u8::from(unknown)))
}

async fn ask(arguments: &LedgerArguments) -> anyhow::Result<Bytes> {
    let address = arguments.address;
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot connect to {address}: is a broker there?"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let query = arguments.key.as_ref().map(|key| format!("?key={key}"));
    let path = format!("/ledger{}", query.unwrap_or_default());
    let request = Request::get(path)
        .header("host", address.to_string())
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        ensure!(status.is_success(), "{address} answers {status}");
        let body = Limited::new(response.into_body(), PAGE).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the answer cannot be read: {error}"))?;
        Ok(body.to_bytes())
    };
    tokio::select! {
        answer = answer => answer,
        ended = connection => match ended {
            Ok(()) => bail!("{address} closed the connection"),
            Err(error) => Err(error.into()),
        },
    }
}

/// One line for each entry. All of it is escaped: names are chosen by tenants.
fn table(records: &[Record]) -> String {
    let mut rows: Vec<[String; COLUMNS]> = vec![
        [
            "SENT",
            "SERVED",
            "ACCESS KEY",
            "POD",
            "SERVICE ACCOUNT",
            "NODE",
            "ROLE",
            "SESSION",
            "ISSUED",
            "EXPIRES",
            "ALLOWED BY",
        ]
        .map(String::from),
    ];
    for record in records {
        rows.push(
            [
                record.at.to_string(),
                record
                    .served
                    .map_or_else(|| "-".into(), |at| at.to_string()),
                record.access_key_id.clone(),
                format!("{}/{}", record.namespace, record.pod),
                record.service_account.clone(),
                record.node.clone().unwrap_or_default(),
                record.role.clone(),
                record.session_name.clone(),
                record.issued.to_string(),
                record.expires.to_string(),
                record.rules.join(", "),
            ]
            .map(|text| text.escape_debug().to_string()),
        );
    }
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a String does not fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
