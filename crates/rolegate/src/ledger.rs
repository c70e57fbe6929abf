//! `rolegate ledger`: queries the ledger of a broker.

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
use rolegate_authorizer::ledger::Record;
use rolegate_report::text;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::flags::invalid;
use crate::output::{self, Format, OutputFlags};
use crate::run::block_on;

/// Timeout of a request to the broker.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of a response, in bytes.
const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// The first paragraphs of the command's help.
pub(crate) const LONG_ABOUT: &str = "Show which sessions a broker sent to which pods.\n\n\
Prints the ledger of one broker, newest entry first: the access key's ID, role, session name, times, the pod and \
the rules that allowed the role. SENT is the time at which the session was sent to the pod's node. SERVED (with \
-o wide) is the time at which the pod received it, as reported by the agent. The ledger contains no secrets. With \
--key, finds the pod of an access key from a CloudTrail record. Each replica serves its own ledger on its loopback \
address, so query each replica, for example with\n\n\
  kubectl -n rolegate-system exec POD -- rolegate ledger --key ASIA...\n\n\
The log keeps the same entries for longer. Exit code 1: no entry has the key.";

/// Arguments of `rolegate ledger`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rolegate ledger -o wide
  kubectl -n rolegate-system exec POD -- rolegate ledger --key ASIA...

Exit codes: 0 done, 1 failed, or no entry has the key, 64 invalid usage.")]
pub(crate) struct LedgerArguments {
    /// Access key ID to search for, such as ASIA...
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Address of the ledger
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

/// Queries the ledger and prints the entries.
pub(crate) fn run(arguments: &LedgerArguments) -> anyhow::Result<ExitCode> {
    if let Some(key) = &arguments.key {
        let good = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric());
        if !good {
            return Err(invalid(
                "--key: an access key ID consists of letters and digits",
            ));
        }
    }
    let page = block_on(async {
        match timeout(REQUEST_TIMEOUT, ask(arguments)).await {
            Ok(page) => page,
            Err(_) => bail!("{} does not respond", arguments.address),
        }
    })?;
    let records: Vec<Record> = serde_json::from_slice(&page)
        .with_context(|| format!("{} is not a ledger of rolegate", arguments.address))?;
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
        output::failure(
            "this ledger does not contain the key; query the other replicas, or search the log",
        );
    }
    Ok(ExitCode::from(u8::from(unknown)))
}

async fn ask(arguments: &LedgerArguments) -> anyhow::Result<Bytes> {
    let address = arguments.address;
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot connect to {address}: is a broker running there?"))?;
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
        let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("cannot read the response: {error}"))?;
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

/// Formats one line per entry; with `is_wide`, all columns. Tenants choose names, so all text is
/// escaped.
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
            "ENDPOINT",
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
                record.endpoint.as_str().to_owned(),
            ]);
        }
        row
    };
    text::table(&titles, records.iter().map(row))
}

/// Formats a time to the second.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
