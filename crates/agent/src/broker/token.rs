//! The agent's token, from a file that the kubelet renews.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use rolegate_proto::wire::MAX_TOKEN;
use rolegate_runtime::clock::Clock;
use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

/// Interval at which the file is checked for a new token. It is longer than a broker takes for one
/// authentication, and far less than the 2 minutes that the kubelet leaves the old token valid.
const POLL_INTERVAL: Duration = Duration::from_secs(20);

/// The reason why there is no token.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the token {path}: {why}")]
pub(super) struct TokenError {
    path: String,
    why: String,
}

/// A file with a token, and the last token that was sent.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
    clock: Clock,
    shown: Zeroizing<String>,
}

impl TokenFile {
    /// Creates a file from which no token was sent yet.
    pub(super) fn new(path: &Path, clock: Clock) -> Self {
        Self {
            path: path.to_owned(),
            clock,
            shown: Zeroizing::default(),
        }
    }

    /// Returns the token to send now.
    pub(super) async fn show(&mut self) -> Result<&str, TokenError> {
        self.shown = read(&self.path).await?;
        Ok(&self.shown)
    }

    /// Waits until the token must be sent again: when there is a new one, since the old one expires
    /// soon then, and after `again` at the latest.
    pub(super) async fn renewed(&mut self, again: Duration) -> Result<&str, TokenError> {
        let clock = self.clock.clone();
        let mut due = pin!(clock.sleep(again));
        loop {
            tokio::select! {
                biased;
                () = &mut due => return self.show().await,
                () = clock.sleep(POLL_INTERVAL) => {}
            }
            // A file that cannot be read now may be readable when the token is due.
            if let Ok(token) = read(&self.path).await
                && *token != *self.shown
            {
                self.shown = token;
                return Ok(&self.shown);
            }
        }
    }
}

async fn read(path: &Path) -> Result<Zeroizing<String>, TokenError> {
    let failed = |why: String| TokenError {
        path: path.display().to_string(),
        why,
    };
    let read = async {
        // Allocates the full size at the start: growing would leave copies behind.
        let mut token = Zeroizing::new(String::with_capacity(MAX_TOKEN + 1));
        let file = tokio::fs::File::open(path).await?;
        file.take(MAX_TOKEN as u64)
            .read_to_string(&mut token)
            .await?;
        Ok::<_, std::io::Error>(token)
    };
    let token = read.await.map_err(|error| failed(error.to_string()))?;
    match token.trim() {
        "" => Err(failed("it is empty".into())),
        token => Ok(Zeroizing::new(token.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tokio::time::Instant;

    use super::*;

    const REAUTH_INTERVAL: Duration = Duration::from_secs(300);

    #[tokio::test(start_paused = true)]
    async fn rule_08_a_new_token_is_shown_before_the_old_one_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "first\n").unwrap();
        let mut file = TokenFile::new(&path, Clock::tokio(Timestamp::UNIX_EPOCH));
        let start = Instant::now();
        assert_eq!(file.show().await.unwrap(), "first");

        // The kubelet leaves 2 minutes of the shortest token.
        std::fs::write(&path, "second\n").unwrap();
        assert_eq!(file.renewed(REAUTH_INTERVAL).await.unwrap(), "second");
        assert!(start.elapsed() < Duration::from_secs(60));
        // The same token is sent too, when it is due.
        let shown = Instant::now();
        assert_eq!(file.renewed(REAUTH_INTERVAL).await.unwrap(), "second");
        assert!(
            shown.elapsed() >= REAUTH_INTERVAL
                && shown.elapsed() < REAUTH_INTERVAL + POLL_INTERVAL * 2
        );
    }

    #[tokio::test(start_paused = true)]
    async fn unreadable_tokens_matter_when_they_are_due() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let mut file = TokenFile::new(&path, Clock::tokio(Timestamp::UNIX_EPOCH));
        assert!(file.show().await.is_err());
        std::fs::write(&path, "first").unwrap();
        file.show().await.unwrap();
        std::fs::write(&path, " \n").unwrap();
        let shown = Instant::now();
        let error = file.renewed(REAUTH_INTERVAL).await.unwrap_err();
        assert!(shown.elapsed() >= REAUTH_INTERVAL);
        assert!(
            error.to_string().ends_with("/token: it is empty"),
            "{error}"
        );
    }
}
