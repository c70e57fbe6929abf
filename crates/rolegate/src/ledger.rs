//! `rolegate ledger`: asks a broker or an agent whose session is whose.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rolegate_policy::text;
use rolegate_standing::ledger::Record;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::flags::invalid;
use crate::output::{self, Format, OutputFlags};

/// How long the broker may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest page, bytes.
const PAGE: usize = 64 << 20;

/// What its help begins with.
pub(crate) const LONG_ABOUT: &str = "Tell which session went to which pod.\n\n\
Asks one broker for its ledger, newest entry first: the access key's ID, role, session name, times, the pod and \
the rules that allowed it. SENT is when it went to the pod's node, SERVED (with -o wide) when the pod got it, as its \
agent says. It holds no secret. With --key, answers whose key it is that stands in a CloudTrail record. A broker's \
ledger is on its loopback, and each replica has its own: ask each, as in\n\n\
  kubectl -n rolegate-system exec POD -- rolegate ledger --key ASIA...\n\n\
The log has the same entries and lives longer. Exit code 1 where the key is in no entry.";

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
    #[command(flatten)]
    output: OutputFlags,
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
    match arguments.output.output {
        Format::Text => output::raw(&table(&records, false))?,
        Format::Wide => output::raw(&table(&records, true))?,
        Format::Name => {
            let names = records.iter().map(|record| format!("pod/{}", record.pod));
            output::names(&names.collect::<Vec<_>>())?;
        }
        format => output::value(format, &serde_json::to_value(&records)?)?,
    }
    let unknown = arguments.key.is_some() && records.is_empty();
    if unknown {
        output::failure("this ledger has no such key; ask the other replicas, or the log");
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

/// One line for each entry; with `is_wide` all that is known of it. Names are chosen by tenants, so all
/// is escaped.
fn table(records: &[Record], is_wide: bool) -> String {
    let mut titles = vec!["ACCESS KEY", "POD", "ROLE", "SENT", "EXPIRES"];
    if is_wide {
        titles.extend([
            "SERVED",
            "ISSUED",
            "SERVICE ACCOUNT",
            "NODE",
            "SESSION",
            "ALLOWED BY",
        ]);
    }
    let row = |record: &Record| {
        let mut row = vec![
            record.access_key_id.clone(),
            format!("{}/{}", record.namespace, record.pod),
            record.role.clone(),
            seconds(record.at),
            seconds(record.expires),
        ];
        if is_wide {
            row.extend([
                record.served.map_or_else(|| "-".to_owned(), seconds),
                seconds(record.issued),
                record.service_account.clone(),
                record.node.clone().unwrap_or_else(|| "-".to_owned()),
                record.session_name.clone(),
                record.rules.join(", "),
            ]);
        }
        row
    };
    text::table(&titles, records.iter().map(row))
}

/// A time to the second.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
