//! Reads workloads and namespaces from a YAML file, for use without Kubernetes. The file is
//! reloaded when it changes; an invalid file changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rolegate_core::annotation::given;
use rolegate_core::namespace::{Namespace, rule_text};
use rolegate_core::workload::{Change, Phase, RoleRequest, Update, Workload};
use rolegate_runtime::readiness::Condition;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

/// Interval at which the file is checked for changes.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum size of the file, in bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// An error that prevents using the file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read the workloads file {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is too large.
    #[error("the workloads file {} has more than {MAX_FILE_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// The file is not YAML, or has the wrong structure.
    #[error("the workloads file {} is invalid: {reason}", .path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The error and its position.
        reason: String,
    },
}

/// A workloads file that is reloaded on change.
#[derive(Debug)]
pub struct WorkloadsFile {
    path: PathBuf,
    seen: Option<Fingerprint>,
    content: Content,
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    workloads: Vec<Workload>,
    namespaces: Vec<Namespace>,
}

/// Detects changes of a file. When Kubernetes updates a mounted ConfigMap it switches a symbolic
/// link, so the inode changes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fingerprint {
    modified: (i64, i64),
    size: u64,
    inode: (u64, u64),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    // Required: an empty file is being written; it does not mean "no pods".
    pods: Vec<PodEntry>,
    #[serde(default)]
    namespaces: Vec<NamespaceEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodEntry {
    namespace: String,
    name: String,
    uid: Option<String>,
    service_account: Option<String>,
    ips: Vec<IpAddr>,
    role: Option<String>,
    external_id: Option<String>,
    session_name: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NamespaceEntry {
    name: String,
    allowed_roles: Option<Vec<String>>,
    permitted: Option<String>,
    default_role: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl WorkloadsFile {
    /// Opens and reads the file, which must exist and be valid.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        let path = path.into();
        // Taken before reading, so that a concurrent change is detected.
        let seen = fingerprint(&path).await.ok();
        let content = load(&path).await?;
        Ok(Self {
            path,
            seen,
            content,
        })
    }

    /// Sends the content now and after each change. Returns only when `updates` is closed.
    pub async fn run(mut self, condition: Condition, updates: mpsc::Sender<Update>) {
        condition.ok();
        if self.send(&updates).await.is_err() {
            return;
        }
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = updates.closed() => return,
            }
            let found = fingerprint(&self.path).await.ok();
            if found == self.seen {
                continue;
            }
            self.seen = found;
            match load(&self.path).await {
                Ok(content) => {
                    condition.ok();
                    if content == self.content {
                        continue;
                    }
                    let path = self.path.display();
                    tracing::info!(%path, pods = content.workloads.len(), "reloaded the workloads file");
                    self.content = content;
                    if self.send(&updates).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(reason = %error, "cannot reload the workloads file, keeping its previous content");
                    condition.note(format!("{error}; the previous content remains in effect"));
                }
            }
        }
    }

    async fn send(
        &self,
        updates: &mpsc::Sender<Update>,
    ) -> Result<(), mpsc::error::SendError<Update>> {
        // Namespaces are sent before the pods that depend on them.
        let Content {
            workloads,
            namespaces,
        } = self.content.clone();
        updates
            .send(Update::Namespaces(Change::Snapshot(namespaces)))
            .await?;
        updates
            .send(Update::Workloads(Change::Snapshot(workloads)))
            .await
    }
}

async fn fingerprint(path: &Path) -> std::io::Result<Fingerprint> {
    let metadata = tokio::fs::metadata(path).await?;
    Ok(Fingerprint {
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        size: metadata.size(),
        inode: (metadata.dev(), metadata.ino()),
    })
}

async fn load(path: &Path) -> Result<Content, FileError> {
    let failed = |source| FileError::Read {
        path: path.into(),
        source,
    };
    let owned = path.to_owned();
    let read = move || {
        let mut text = String::new();
        std::fs::File::open(owned)?
            .take(MAX_FILE_BYTES + 1)
            .read_to_string(&mut text)?;
        Ok(text)
    };
    let text = tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|stopped| Err(std::io::Error::other(stopped)))
        .map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(FileError::TooLarge(path.into()));
    }
    parse(&text).map_err(|reason| FileError::Wrong {
        path: path.into(),
        reason,
    })
}

fn parse(text: &str) -> Result<Content, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let document: Document =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    let mut names = BTreeSet::new();
    for pod in &document.pods {
        if pod.namespace.is_empty() || pod.name.is_empty() {
            return Err("a pod needs a namespace and a name".into());
        }
        if !names.insert((&pod.namespace, &pod.name)) {
            return Err(format!("duplicate pod {}/{}", pod.namespace, pod.name));
        }
    }
    let mut names = BTreeSet::new();
    for namespace in &document.namespaces {
        if !names.insert(&namespace.name) {
            return Err(format!("duplicate namespace {}", namespace.name));
        }
    }
    Ok(Content {
        workloads: document.pods.into_iter().map(Into::into).collect(),
        namespaces: document.namespaces.into_iter().map(Into::into).collect(),
    })
}

impl From<PodEntry> for Workload {
    fn from(pod: PodEntry) -> Self {
        Self {
            uid: pod
                .uid
                .unwrap_or_else(|| format!("{}/{}", pod.namespace, pod.name))
                .into(),
            namespace: pod.namespace.into(),
            name: pod.name.into(),
            node: None,
            service_account: pod
                .service_account
                .unwrap_or_else(|| "default".into())
                .into(),
            addresses: pod.ips.iter().map(IpAddr::to_canonical).collect(),
            phase: Phase::Running,
            host_network: false,
            mirror: false,
            role_request: RoleRequest::new(
                pod.role.as_deref(),
                pod.external_id.as_deref(),
                pod.session_name.as_deref(),
            ),
            labels: pod.labels.iter().collect(),
            annotations: pod.annotations.iter().collect(),
        }
    }
}

impl From<NamespaceEntry> for Namespace {
    fn from(namespace: NamespaceEntry) -> Self {
        Self {
            name: namespace.name.into(),
            // Same format as the annotation.
            allowed_roles: namespace
                .allowed_roles
                .map(|roles| rule_text(&serde_json::Value::from(roles).to_string())),
            permitted: namespace.permitted.as_deref().map(rule_text),
            default_role: namespace
                .default_role
                .as_deref()
                .and_then(given)
                .map(Into::into),
            labels: namespace.labels.iter().collect(),
            without_roles: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use rolegate_core::annotation::AnnotationKeys;
    use rolegate_core::arn::BaseArn;
    use rolegate_core::namespace::NamespaceRules;
    use rolegate_core::pattern::PatternFormat;
    use rolegate_runtime::readiness::Readiness;
    use serde_json::json;

    use super::*;

    const GOOD: &str = "
pods:
- namespace: shop
  name: api-0
  serviceAccount: api
  ips: [10.0.0.1, 'fd00::1']
  role: reader
  externalId: x-1
  sessionName: me
  labels: { app: api }
  annotations: { example.com/any: thing }
- { namespace: shop, name: job, uid: u2, ips: [] }
namespaces:
- name: shop
  allowedRoles: ['reader', 'shop-*']
  permitted: ''
  defaultRole: shop-default
  labels: { team: shop }
";

    #[test]
    fn every_field_of_pods_and_namespaces_is_read() {
        let content = parse(GOOD).unwrap();
        let api = &content.workloads[0];
        assert_eq!(
            (&*api.namespace, &*api.name, &*api.uid),
            ("shop", "api-0", "shop/api-0")
        );
        assert_eq!((&*api.service_account, api.phase), ("api", Phase::Running));
        assert_eq!(api.own_addresses().len(), 2);
        assert_eq!(api.role_request.role.as_deref(), Some("reader"));
        assert_eq!(api.role_request.external_id.as_deref(), Some("x-1"));
        assert_eq!(api.role_request.session_name.as_deref(), Some("me"));
        assert_eq!(api.labels.get("app"), Some("api"));
        assert_eq!(api.annotations.get("example.com/any"), Some("thing"));
        let job = &content.workloads[1];
        assert_eq!((&*job.uid, &*job.service_account), ("u2", "default"));
        let shop = &content.namespaces[0];
        assert_eq!(
            shop.allowed_roles.as_deref(),
            Some(r#"["reader","shop-*"]"#)
        );
        assert_eq!(shop.permitted.as_deref(), Some(""));
        assert_eq!(shop.default_role.as_deref(), Some("shop-default"));
        assert_eq!(shop.labels.get("team"), Some("shop"));
    }

    /// A pod from the file is equal to the same pod from the API server, and so is its namespace.
    #[test]
    fn blanks_around_texts_count_as_little_as_from_the_api_server() {
        let text = "
pods:
- namespace: shop
  name: api-0
  uid: u
  ips: []
  role: |
    reader
  externalId: \"\\tcustomer\\n\"
  sessionName: \"\\u00a0me \"
- { namespace: shop, name: job, uid: u, ips: [], role: \"\\n\", externalId: \" \", sessionName: \" \" }
namespaces:
- name: shop
  allowedRoles: [\"reader\\n\", \" shop-*\"]
  permitted: |
    reader|shop-.*
  defaultRole: |
    shop-default
- { name: none, defaultRole: \"\\n\" }
";
        let content = parse(text).unwrap();
        let keys = AnnotationKeys::default();
        let pod = |name: &str, role: &str, id: &str, session: &str| {
            let pod = json!({"metadata": {"namespace": "shop", "name": name, "uid": "u", "annotations": {
                "iam.amazonaws.com/role": role, "iam.amazonaws.com/external-id": id,
                "iam.amazonaws.com/session-name": session}}});
            crate::workloads::read(&pod, &keys).unwrap().role_request
        };
        let [api, job] = &content.workloads[..] else {
            panic!("{:?}", content.workloads);
        };
        assert_eq!(
            api.role_request,
            pod("api-0", "reader\n", "\tcustomer\n", "\u{a0}me ")
        );
        assert_eq!(api.role_request, pod("api-0", "reader", "customer", "me"));
        assert_eq!(job.role_request, pod("job", "\n", " ", " "));
        assert_eq!(
            (
                job.role_request.role.as_deref(),
                &job.role_request.external_id
            ),
            (Some(""), &None)
        );
        let namespace = json!({"metadata": {"name": "shop", "annotations": {
            "iam.amazonaws.com/allowed-roles": "[\"reader\\n\",\" shop-*\"]\n",
            "iam.amazonaws.com/permitted": "reader|shop-.*\n",
            "iam.amazonaws.com/default-role": "shop-default\n"}}});
        let [shop, none] = &content.namespaces[..] else {
            panic!("{:?}", content.namespaces);
        };
        assert_eq!(*shop, crate::namespaces::read(&namespace, &keys).unwrap());
        assert_eq!(shop.default_role.as_deref(), Some("shop-default"));
        assert_eq!(none.default_role, None);
        let base = BaseArn::parse("arn:aws:iam::123456789012:role/").ok();
        let rules = NamespaceRules::new(shop, base.as_ref(), PatternFormat::Glob);
        let compiled = rules.annotations();
        for patterns in [&compiled.allowed, &compiled.permitted] {
            let patterns = patterns.as_ref().unwrap().as_ref().unwrap();
            for role in ["reader", "shop-x"] {
                let arn = format!("arn:aws:iam::123456789012:role/{role}");
                assert!(
                    patterns.iter().any(|pattern| pattern.matches(&arn)),
                    "{role}"
                );
            }
        }
    }

    #[test]
    fn errors_name_the_line() {
        for (text, parts) in [
            (
                "pods:\n- { namespace: a, name: b, ips: [], rôle: x }",
                ["rôle", "line 2"],
            ),
            (
                "pods:\n- namespace: a\n  name: b\n  ips: [300.0.0.1]",
                ["IP address", "line 4"],
            ),
            ("pods: []\nnamespaces: []\nrules: []", ["rules", "line 3"]),
            ("pods:\n- { name: b, ips: [] }", ["namespace", "line 2"]),
            ("pods: [", ["", "line"]),
            ("", ["", ""]),
            ("namespaces: []", ["pods", ""]),
            (
                "pods:\n- { namespace: a, name: b, ips: [] }\n- { namespace: a, name: b, ips: [] }",
                ["a/b", "duplicate"],
            ),
            (
                "pods: []\nnamespaces:\n- { name: n }\n- { name: n }",
                ["namespace n", "duplicate"],
            ),
        ] {
            let reason = parse(text).unwrap_err();
            for part in parts {
                assert!(reason.contains(part), "{part:?} not in {reason:?}");
            }
        }
    }

    #[tokio::test]
    async fn must_be_there_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let error = WorkloadsFile::open(dir.path().join("none"))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot read the workloads file"), "{error}");
        let path = dir.path().join("large");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(MAX_FILE_BYTES + 1)
            .unwrap();
        let error = WorkloadsFile::open(path).await.unwrap_err().to_string();
        assert!(error.contains("more than"), "{error}");
    }

    /// Returns the names of the pods in the next snapshot.
    async fn next_pods(updates: &mut mpsc::Receiver<Update>) -> Vec<String> {
        loop {
            let update = tokio::time::timeout(Duration::from_secs(60), updates.recv());
            match update.await.expect("no update").expect("closed") {
                Update::Workloads(Change::Snapshot(pods)) => {
                    return pods.iter().map(|pod| pod.name.to_string()).collect();
                }
                other => assert!(matches!(other, Update::Namespaces(_)), "{other:?}"),
            }
        }
    }

    fn one(name: &str) -> String {
        format!("pods:\n- {{ namespace: a, name: {name}, ips: [10.0.0.1] }}\n")
    }

    #[tokio::test]
    async fn follows_the_link_of_a_config_map_and_keeps_the_last_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("workloads.yaml");
        // As the kubelet does: a link to a link to a directory, where the middle one is replaced.
        let turn = |version: &str, text: &str| {
            std::fs::create_dir(dir.path().join(version)).unwrap();
            std::fs::write(dir.path().join(version).join("workloads.yaml"), text).unwrap();
            std::os::unix::fs::symlink(version, dir.path().join("tmp")).unwrap();
            std::fs::rename(dir.path().join("tmp"), dir.path().join("..data")).unwrap();
        };
        turn("v1", &one("first"));
        std::os::unix::fs::symlink("..data/workloads.yaml", &path).unwrap();

        let readiness = Readiness::new();
        let file = WorkloadsFile::open(&path).await.unwrap();
        let (sender, mut updates) = mpsc::channel(4);
        let running = tokio::spawn(file.run(readiness.condition("workloads file"), sender));
        assert_eq!(next_pods(&mut updates).await, ["first"]);
        assert!(readiness.is_ready());

        turn("v2", &one("second"));
        assert_eq!(next_pods(&mut updates).await, ["second"]);

        turn("v3", "pods: [");
        while readiness.report().noted.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(readiness.is_ready(), "the last good one still holds");
        assert!(updates.try_recv().is_err());

        turn("v4", &one("third"));
        assert_eq!(next_pods(&mut updates).await, ["third"]);
        assert!(readiness.report().noted.is_empty());
        drop(updates);
        tokio::time::timeout(Duration::from_secs(60), running)
            .await
            .unwrap()
            .unwrap();
    }
}
