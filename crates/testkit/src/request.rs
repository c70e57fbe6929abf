//! Requests as `kubectl` sends them, for any path and user, with the API server's complete
//! responses, including warnings.

use anyhow::Context;
use http::{Method, Request, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::Value;

use crate::Cluster;
use crate::cases::User;

/// The content type of a PATCH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// JSON merge patch, as `kubectl annotate` and `kubectl patch --type merge` send it.
    Merge,
    /// Server-side apply, as `kubectl apply --server-side` sends it.
    Apply,
}

impl PatchKind {
    fn content_type(self) -> &'static str {
        match self {
            Self::Merge => "application/merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// A response of the API server.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// An object, or a `Status` with an error.
    pub body: Value,
    /// The texts of the `Warning` headers.
    pub warnings: Vec<String>,
}

impl Answer {
    /// Returns the message of a `Status`. Empty for an object.
    pub fn message(&self) -> &str {
        let message = self.body.get("message");
        message.and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the object.
    ///
    /// # Errors
    /// Returns the server's message if it sent no object.
    pub fn object(self) -> anyhow::Result<Value> {
        anyhow::ensure!(
            self.status.is_success(),
            "{}: {}",
            self.status,
            self.message()
        );
        Ok(self.body)
    }

    /// Returns `true` if one of our webhooks denied the request. `false` if the API server refused
    /// it for another reason, or could not call the webhook.
    pub fn is_refused_by_webhook(&self) -> bool {
        let message = self.message();
        message.starts_with("admission webhook \"") && message.contains(".rolegate.dev\" denied")
    }
}

/// Sends requests as one user.
#[derive(Clone)]
pub struct Requests {
    client: Client,
    user: Option<User>,
}

impl Cluster {
    /// Returns requests with all permissions.
    ///
    /// # Errors
    /// As [`Cluster::admin`].
    pub fn requests(&self) -> anyhow::Result<Requests> {
        Ok(Requests {
            client: self.admin()?,
            user: None,
        })
    }
}

impl Requests {
    /// Returns requests that impersonate a user.
    #[must_use]
    pub fn as_user(&self, user: &User) -> Self {
        Self {
            client: self.client.clone(),
            user: Some(user.clone()),
        }
    }

    /// Sends a GET.
    ///
    /// # Errors
    /// Returns an error if the API server cannot be reached.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send(Method::GET, path, None, "application/json").await
    }

    /// Sends a POST, which creates an object.
    ///
    /// # Errors
    /// Returns an error if the API server cannot be reached.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        let json = "application/json";
        self.send(Method::POST, path, Some(body), json).await
    }

    /// Sends a PUT, which replaces an object.
    ///
    /// # Errors
    /// Returns an error if the API server cannot be reached.
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        let json = "application/json";
        self.send(Method::PUT, path, Some(body), json).await
    }

    /// Sends a PATCH.
    ///
    /// # Errors
    /// Returns an error if the API server cannot be reached.
    pub async fn patch(&self, path: &str, kind: PatchKind, body: &Value) -> anyhow::Result<Answer> {
        let content_type = kind.content_type();
        self.send(Method::PATCH, path, Some(body), content_type)
            .await
    }

    /// Sends a DELETE.
    ///
    /// # Errors
    /// Returns an error if the API server cannot be reached.
    pub async fn delete(&self, path: &str) -> anyhow::Result<Answer> {
        let json = "application/json";
        self.send(Method::DELETE, path, None, json).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        content_type: &str,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type);
        if let Some(user) = &self.user {
            request = request.header("impersonate-user", &user.name);
            for group in &user.groups {
                request = request.header("impersonate-group", group);
            }
        }
        let body = body.map(serde_json::to_vec).transpose()?;
        let request = request.body(Body::from(body.unwrap_or_default()))?;
        let response = self.client.send(request).await;
        let (parts, body) = response.with_context(|| path.to_owned())?.into_parts();
        let warnings = parts.headers.get_all("warning").iter();
        // Truncated warnings end with a non-ASCII ellipsis.
        let warnings = warnings.map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
        Ok(Answer {
            status: parts.status,
            warnings: warnings.collect(),
            body: serde_json::from_slice(&body.collect_bytes().await?).unwrap_or_default(),
        })
    }
}
