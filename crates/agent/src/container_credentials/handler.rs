//! Handling of requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use jiff::Timestamp;
use rolegate_kube::service_account_keys::KeyLookupError;
use rolegate_service_account_token::{Identity, UnverifiedToken};

use super::ContainerCredentialsServer;
use super::document::ContainerDocument;
use super::reply::{Code, Reply};
use super::validate::token_of;
use super::verified::{TokenHash, VerifiedToken};
use crate::credentials::Attempt;
use crate::limits::Connection;
use crate::metrics::{Handler, Outcome};

/// A connection of a client.
#[derive(Debug)]
pub(super) struct RequestHandler {
    server: Arc<ContainerCredentialsServer>,
    connection: Connection,
    /// The local address of the connection.
    own: SocketAddr,
}

impl RequestHandler {
    pub(super) fn new(
        server: Arc<ContainerCredentialsServer>,
        connection: Connection,
        own: SocketAddr,
    ) -> Arc<Self> {
        Arc::new(Self {
            server,
            connection,
            own,
        })
    }

    /// Responds to one request, and counts it.
    pub(super) async fn respond<B>(self: Arc<Self>, request: Request<B>) -> Response<Full<Bytes>> {
        let begun = Instant::now();
        self.connection.begin(begun);
        let mut reply = match token_of(&request, self.own) {
            Ok(token) => self.credentials(token).await,
            Err(refused) => refused,
        };
        let took = begun.elapsed();
        if self.connection.end(begun + took) {
            reply = reply.and_close();
        }
        let metrics = &self.server.credentials.metrics;
        metrics.request(Handler::ContainerCredentials, reply.outcome, took);
        tracing::debug!(
            status = reply.response.status().as_u16(),
            outcome = reply.outcome.as_str(),
            ?took,
            "container credentials request"
        );
        reply.response
    }

    /// Responds to the bearer of a token.
    async fn credentials(&self, token: &[u8]) -> Reply {
        let server = &self.server;
        let hash = TokenHash::of(token);
        let verified = match server.known_token(&hash, server.credentials.clock.now()) {
            Some(verified) => verified,
            None => match Box::pin(self.verify(token, hash)).await {
                Ok(verified) => verified,
                Err(refused) => return refused,
            },
        };
        let identity = &verified.identity;
        match self.attempt(identity, server.credentials.clock.now()) {
            Attempt::Done(reply) => reply,
            Attempt::Wait(last) | Attempt::WaitForSession(_, last) => {
                Box::pin(self.retry_on_change(last, identity)).await
            }
        }
    }

    /// Verifies a token that is new to this agent.
    async fn verify(&self, token: &[u8], hash: TokenHash) -> Result<Arc<VerifiedToken>, Reply> {
        let server = &self.server;
        let now = server.credentials.clock.now();
        if !self.connection.verify(now) {
            return Err(limited("this pod presents too many new tokens"));
        }
        let token = UnverifiedToken::parse(token)?;
        let found = match server.keys.find_now(token.key_id())? {
            Some(found) => found,
            None => {
                let Some(_waiter) = self.connection.wait(now) else {
                    return Err(limited("this pod has too many waiting requests"));
                };
                let found = server.keys.find(token.key_id());
                let found = tokio::time::timeout(server.credentials.wait, found).await;
                found.unwrap_or(Err(KeyLookupError::Unavailable))?
            }
        };
        let now = server.credentials.clock.now();
        Ok(server.verify(&token, hash, &found, now)?)
    }

    /// Tries to respond to the bearer of a verified token.
    fn attempt(&self, identity: &Identity, now: Timestamp) -> Attempt<Reply> {
        let entry = match self.server.bound_pod(identity, now) {
            Ok(entry) => entry,
            Err(refused) => return refused,
        };
        let credentials = &self.server.credentials;
        let audience = self.server.audience_of(identity);
        credentials.allowed_for(&entry, audience, now, |entry, allowed| {
            credentials.session(entry, allowed, now, |session| {
                Reply::ok(session.document::<ContainerDocument>())
            })
        })
    }

    /// Retries on each relevant change, up to the deadline.
    async fn retry_on_change(&self, last: Reply, identity: &Identity) -> Reply {
        let credentials = &self.server.credentials;
        let Some(_waiter) = self.connection.wait(credentials.clock.now()) else {
            return limited("this pod has too many waiting requests");
        };
        let attempt = |now| self.attempt(identity, now);
        credentials.retry_on_change(last, attempt).await
    }
}

fn limited(sentence: &str) -> Reply {
    Reply::refuse(Outcome::Limited, Code::TooManyRequests, sentence)
}
