//! The connection to the API server: its address, its credentials and its timeouts.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use http::{Request, Response};
use kube::client::{AuthError, Body, ClientBuilder, DynBody};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::{BoxError, Service};
use zeroize::Zeroizing;

use crate::freshness::{Freshness, FreshnessSet, track_freshness};

/// Timeout for establishing a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout between two bytes of a response. Slightly longer than a watch, because the API server
/// may send nothing on a watch until it ends it.
const READ_TIMEOUT: Duration = Duration::from_secs(165);
/// Timeout for writing a request.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of a token file, in bytes.
const MAX_TOKEN_BYTES: u64 = 64 << 10;
/// Path of the API server's CA certificate in a pod.
const CLUSTER_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// Options for reaching the API server. Without any, the pod's own service account is used or,
/// outside a cluster, the user's kubeconfig.
#[derive(Clone, Default)]
pub struct ClientOptions {
    /// URL of the API server, `http` or `https`. Overrides the one of `kubeconfig`.
    pub api_server: Option<String>,
    /// Bearer token. Requires `api_server`.
    pub api_token: Option<Zeroizing<String>>,
    /// File that contains the bearer token. Requires `api_server`.
    pub api_token_file: Option<PathBuf>,
    /// The user to impersonate.
    pub impersonate: Option<Impersonate>,
    /// Skip verification of the API server's certificate.
    pub insecure: bool,
    /// Path of a kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. `None`: its current context.
    pub context: Option<String>,
}

/// A user to impersonate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impersonate {
    /// The user's name.
    pub user: String,
    /// The user's groups.
    pub groups: Vec<String>,
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("api_server", &self.api_server)
            .field("api_token", &self.api_token.as_ref().map(|_| "…"))
            .field("api_token_file", &self.api_token_file)
            .field("impersonate", &self.impersonate)
            .field("insecure", &self.insecure)
            .field("kubeconfig", &self.kubeconfig)
            .field("context", &self.context)
            .finish()
    }
}

/// An error in the client's configuration. Retrying does not help.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address of the API server is not a URL.
    #[error("{given:?} is not the URL of an API server: use https://HOST:PORT or http://HOST:PORT")]
    ApiServer {
        /// The given address.
        given: String,
    },
    /// A token was given without an API server.
    #[error("an API token requires the URL of its API server: set --api-server")]
    TokenWithoutServer,
    /// The token file cannot be used.
    #[error("cannot use the API token of {}: {why}", .path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The kubeconfig cannot be used.
    #[error("cannot use kubeconfig {}: {}", .path.display(), crate::error::chain(.error))]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: Box<KubeconfigError>,
    },
    /// The kubeconfig does not have this context.
    #[error("context {context:?} does not exist in the kubeconfig")]
    Context {
        /// The context's name.
        context: String,
    },
    /// The kubeconfig's exec plugin for credentials cannot be run.
    #[error("cannot run {command:?}, the kubeconfig's exec plugin for credentials: {error}")]
    ExecPlugin {
        /// The program.
        command: String,
        /// The reason.
        error: std::io::Error,
    },
    /// No API server is configured and this is not a pod.
    #[error(
        "cannot find an API server: not running in a pod ({in_cluster}) and no usable kubeconfig \
         ({kubeconfig}); set --api-server or --kubeconfig"
    )]
    Nowhere {
        /// The reason why the in-cluster configuration cannot be used.
        in_cluster: Box<InClusterError>,
        /// The reason why the user's kubeconfig cannot be used.
        kubeconfig: Box<KubeconfigError>,
    },
    /// The certificates or tokens cannot be used.
    #[error("cannot set up the connection to the API server: {}", crate::error::chain(.0))]
    Setup(Box<kube::Error>),
}

/// A client of the API server and the freshness of its watches.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    freshness: FreshnessSet,
    url: String,
    namespace: String,
    context: Option<String>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Configures the client. Does not connect to the API server, which may be unavailable.
    pub async fn new(options: &ClientOptions) -> Result<Self, ClientError> {
        Self::with_read_timeout(options, READ_TIMEOUT).await
    }

    pub(crate) async fn with_read_timeout(
        options: &ClientOptions,
        read: Duration,
    ) -> Result<Self, ClientError> {
        let (mut config, context) = configure(options).await?;
        config.accept_invalid_certs |= options.insecure;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(read);
        config.write_timeout = Some(WRITE_TIMEOUT);
        config.reset_reader_on_write = true;
        // Watches decide when to retry, and count and report it.
        config.default_retry = false;
        let agent = HeaderValue::from_static(concat!("rolegate/", env!("CARGO_PKG_VERSION")));
        config.headers.push((USER_AGENT, agent));
        let url = config.cluster_url.to_string();
        let namespace = config.default_namespace.clone();
        let plugin = config
            .auth_info
            .exec
            .as_ref()
            .and_then(|exec| exec.command.clone());
        let client = ClientBuilder::try_from(config).map_err(|error| match (error, plugin) {
            (kube::Error::Auth(AuthError::AuthExecStart(error)), Some(command)) => {
                ClientError::ExecPlugin { command, error }
            }
            (error, _) => ClientError::Setup(Box::new(error)),
        })?;
        Ok(Self {
            namespace,
            context,
            ..Self::over(client, url)
        })
    }

    /// Creates a connection over any transport.
    pub(crate) fn over<S>(client: ClientBuilder<S>, url: String) -> Self
    where
        S: Service<Request<Body>, Response = Response<Box<DynBody>>, Error = BoxError>
            + Send
            + 'static,
        S::Future: Send + 'static,
    {
        Self {
            client: client.build(),
            freshness: FreshnessSet::default(),
            url,
            namespace: "default".into(),
            context: None,
        }
    }

    /// Returns the client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Returns a client for one watch, which updates `freshness`.
    pub(crate) fn watching(&self, freshness: &Freshness) -> Client {
        track_freshness(self.client.clone(), freshness.clone())
    }

    /// Returns the freshness of the watches.
    pub fn freshness(&self) -> &FreshnessSet {
        &self.freshness
    }

    /// Returns the default namespace: that of the kubeconfig's context, or of this pod.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the context of the kubeconfig, if one is used.
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    /// Returns the URL of the API server.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// Builds the client's configuration. Also returns the context of the kubeconfig.
async fn configure(options: &ClientOptions) -> Result<(Config, Option<String>), ClientError> {
    let has_token = options.api_token.is_some() || options.api_token_file.is_some();
    if has_token && options.api_server.is_none() {
        return Err(ClientError::TokenWithoutServer);
    }
    let server = options
        .api_server
        .as_deref()
        .map(parse_server)
        .transpose()?;
    let (mut config, context) = match (&options.kubeconfig, &server) {
        (Some(path), _) => {
            let failed = |error| match error {
                KubeconfigError::LoadContext(context) => ClientError::Context { context },
                error => ClientError::Kubeconfig {
                    path: path.into(),
                    error: Box::new(error),
                },
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
            from_kubeconfig(kubeconfig, options).await.map_err(failed)?
        }
        (None, Some(url)) => {
            let mut config = Config::new(url.clone());
            // In a pod, the cluster's own CA; elsewhere, the system's.
            let ca = Path::new(CLUSTER_CA);
            config.root_cert_file = ca.exists().then(|| ca.to_owned());
            (config, None)
        }
        (None, None) => match Config::incluster() {
            Ok(config) => (config, None),
            Err(in_cluster) => {
                let found = match Kubeconfig::read() {
                    Ok(kubeconfig) => from_kubeconfig(kubeconfig, options).await,
                    Err(error) => Err(error),
                };
                found.map_err(|kubeconfig| match kubeconfig {
                    KubeconfigError::LoadContext(context) => ClientError::Context { context },
                    kubeconfig => ClientError::Nowhere {
                        in_cluster: Box::new(in_cluster),
                        kubeconfig: Box::new(kubeconfig),
                    },
                })?
            }
        },
    };
    if let Some(url) = server {
        config.cluster_url = url;
    }
    if let Some(token) = &options.api_token {
        config.auth_info.token = Some(token.as_str().into());
    }
    if let Some(path) = &options.api_token_file {
        let failed = |why: String| ClientError::TokenFile {
            path: path.clone(),
            why,
        };
        let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
        let mut text = Zeroizing::new(String::new());
        let read = file.take(MAX_TOKEN_BYTES).read_to_string(&mut text);
        read.map_err(|error| failed(error.to_string()))?;
        match text.trim() {
            "" => return Err(failed("it is empty".into())),
            token => config.auth_info.token = Some(token.into()),
        }
    }
    if let Some(Impersonate { user, groups }) = &options.impersonate {
        config.auth_info.impersonate = Some(user.clone());
        config.auth_info.impersonate_groups = Some(groups.clone());
    }
    Ok((config, context))
}

async fn from_kubeconfig(
    kubeconfig: Kubeconfig,
    options: &ClientOptions,
) -> Result<(Config, Option<String>), KubeconfigError> {
    let selection = KubeConfigOptions {
        context: options.context.clone(),
        ..KubeConfigOptions::default()
    };
    let context = selection
        .context
        .clone()
        .or_else(|| kubeconfig.current_context.clone());
    let config = Config::from_custom_kubeconfig(kubeconfig, &selection).await?;
    Ok((config, context))
}

fn parse_server(given: &str) -> Result<http::Uri, ClientError> {
    let url = given.parse::<http::Uri>().ok();
    url.filter(|url| matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some())
        .ok_or_else(|| ClientError::ApiServer {
            given: given.into(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: one
clusters:
- { name: one, cluster: { server: 'https://one.example:6443' } }
- { name: two, cluster: { server: 'http://two.example:8080' } }
users:
- { name: user, user: { token: from-kubeconfig } }
contexts:
- { name: one, context: { cluster: one, user: user } }
- { name: two, context: { cluster: two, user: user } }
";

    fn kubeconfig() -> (tempfile::TempDir, ClientOptions) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, KUBECONFIG).unwrap();
        (
            dir,
            ClientOptions {
                kubeconfig: Some(path),
                ..ClientOptions::default()
            },
        )
    }

    #[tokio::test]
    async fn a_kubeconfig_and_its_contexts() {
        let (_dir, options) = kubeconfig();
        let url =
            |options| async move { Connection::new(&options).await.unwrap().url().to_owned() };
        assert_eq!(url(options.clone()).await, "https://one.example:6443/");
        let context = Some("two".into());
        assert_eq!(
            url(ClientOptions {
                context,
                ..options.clone()
            })
            .await,
            "http://two.example:8080/"
        );
        let api_server = Some("https://three.example".into());
        assert_eq!(
            url(ClientOptions {
                api_server,
                ..options
            })
            .await,
            "https://three.example/"
        );
    }

    #[tokio::test]
    async fn the_namespace_is_that_of_the_context() {
        let (dir, options) = kubeconfig();
        let namespace = |options| async move {
            Connection::new(&options)
                .await
                .unwrap()
                .namespace()
                .to_owned()
        };
        assert_eq!(namespace(options.clone()).await, "default");
        let shop = KUBECONFIG.replace(
            "user: user } }\n- { name: two",
            "user: user, namespace: shop } }\n- { name: two",
        );
        std::fs::write(dir.path().join("config"), shop).unwrap();
        assert_eq!(namespace(options.clone()).await, "shop");
        let context = Some("two".into());
        let two = ClientOptions { context, ..options };
        let connection = Connection::new(&two).await.unwrap();
        assert_eq!(
            (connection.namespace(), connection.context()),
            ("default", Some("two"))
        );
    }

    #[tokio::test]
    async fn a_missing_exec_plugin_is_named() {
        let (dir, options) = kubeconfig();
        let exec = "user: { exec: { apiVersion: client.authentication.k8s.io/v1, \
            command: no-such-plugin, interactiveMode: Never } }";
        let text = KUBECONFIG.replace("user: { token: from-kubeconfig }", exec);
        assert!(text.contains("no-such-plugin"));
        std::fs::write(dir.path().join("config"), text).unwrap();
        let error = Connection::new(&options).await.unwrap_err().to_string();
        assert!(error.contains("cannot run \"no-such-plugin\""), "{error}");
    }

    #[tokio::test]
    async fn invalid_options_are_errors() {
        let (_dir, mut options) = kubeconfig();
        options.context = Some("none".into());
        let error = Connection::new(&options).await.unwrap_err().to_string();
        assert_eq!(error, "context \"none\" does not exist in the kubeconfig");
        let kubeconfig = Some("/nonexistent/config".into());
        let nowhere = ClientOptions {
            kubeconfig,
            ..options.clone()
        };
        let error = Connection::new(&nowhere).await.unwrap_err().to_string();
        assert!(
            error.starts_with("cannot use kubeconfig /nonexistent/config"),
            "{error}"
        );
        assert_eq!(error.matches("No such file").count(), 1, "{error}");
        for wrong in ["localhost:8080", "ftp://a", "https://", "a b"] {
            let api_server = Some(wrong.into());
            let options = ClientOptions {
                api_server,
                ..ClientOptions::default()
            };
            let error = Connection::new(&options).await.unwrap_err().to_string();
            assert!(error.contains("https://HOST:PORT"), "{error}");
        }
        let api_token = Some(Zeroizing::new("secret".into()));
        let options = ClientOptions {
            api_token,
            ..ClientOptions::default()
        };
        let error = Connection::new(&options).await.unwrap_err().to_string();
        assert!(error.contains("--api-server"), "{error}");
    }

    #[test]
    fn the_token_is_never_shown() {
        let options = ClientOptions {
            api_token: Some(Zeroizing::new("very-secret".into())),
            ..ClientOptions::default()
        };
        assert!(!format!("{options:?}").contains("very-secret"));
    }

    #[tokio::test]
    async fn the_token_is_sent_and_plain_http_accepted() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api_server = Some(format!("http://{}", listener.local_addr().unwrap()));
        let api_token = Some(Zeroizing::new("my-token".into()));
        let options = ClientOptions {
            api_server,
            api_token,
            ..ClientOptions::default()
        };
        let client = Connection::new(&options).await.unwrap().client();
        let call = tokio::spawn(async move { client.apiserver_version().await });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; 4096];
        let count = stream.read(&mut bytes).await.unwrap();
        let request = String::from_utf8_lossy(&bytes[..count]).to_lowercase();
        assert!(
            request.contains("authorization: bearer my-token"),
            "{request}"
        );
        assert!(request.contains("user-agent: rolegate/"), "{request}");
        // The client does not retry a 503 by itself.
        stream
            .write_all(b"HTTP/1.1 503 Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        let answered = tokio::time::timeout(Duration::from_secs(20), call).await;
        assert!(answered.expect("it was tried again").unwrap().is_err());
    }
}
