//! Prints the caller's identity with the AWS SDK for Rust: see `tests/sdks/README.md`.

use std::time::{Duration, Instant};

use anyhow::Context;
use aws_config::BehaviorVersion;
use aws_credential_types::provider::ProvideCredentials;
use aws_smithy_types::error::display::DisplayErrorContext;

const PAUSE: Duration = Duration::from_secs(5);

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the output of the program")]
async fn main() -> anyhow::Result<()> {
    let seconds = std::env::args().nth(1);
    let seconds = seconds.map_or(Ok(0), |seconds| seconds.parse())?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let client = aws_sdk_sts::Client::new(&config);
    let provider = config.credentials_provider().context("no provider")?;
    loop {
        let identity = client.get_caller_identity().send().await;
        let identity =
            identity.map_err(|error| anyhow::anyhow!("{}", DisplayErrorContext(error)))?;
        let credentials = provider.provide_credentials().await?;
        let arn = identity.arn().unwrap_or_default();
        println!("{arn} {}", credentials.access_key_id());
        if Instant::now() >= end {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
