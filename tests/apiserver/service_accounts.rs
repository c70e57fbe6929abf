//! The watch of service accounts against a real API server.

use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use rolegate_core::rule_set_builder::Invalidated;
use rolegate_kube::client::{ClientOptions, Connection};
use rolegate_kube::service_accounts::watch_service_accounts;
use rolegate_kube::watch::{WatchMetrics, WatchObserver};
use rolegate_rules::service_accounts::{Account, AccountLookup, ServiceAccountStore};
use rolegate_runtime::readiness::Readiness;
use rolegate_testkit::{Cluster, eventually};
use serde_json::json;
use tokio::sync::mpsc;

const DEADLINE: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "accounts";

/// A store that the watch writes.
struct Watched {
    store: ServiceAccountStore,
    readiness: Readiness,
    _changes: mpsc::Receiver<Invalidated>,
}

async fn watched(cluster: &Cluster) -> Watched {
    let options = ClientOptions {
        kubeconfig: Some(cluster.admin_kubeconfig().unwrap()),
        ..ClientOptions::default()
    };
    let connection = Connection::new(&options).await.unwrap();
    let store = ServiceAccountStore::default();
    let readiness = Readiness::new();
    let observer = WatchObserver {
        metrics: WatchMetrics::default(),
        condition: readiness.condition("service accounts"),
    };
    // As many as the test makes, so the watch never waits for the receiver.
    let (sender, changes) = mpsc::channel(1024);
    let written = store.clone();
    tokio::spawn(async move {
        let wrap = move |change| written.apply(change);
        let prefix = "eks.amazonaws.com".to_owned();
        watch_service_accounts(&connection, prefix, observer, wrap, sender).await;
    });
    Watched {
        store,
        readiness,
        _changes: changes,
    }
}

impl Watched {
    async fn until(&self, wanted: impl Fn(AccountLookup) -> bool) {
        eventually(DEADLINE, async || {
            let found = self.store.lookup(NAMESPACE, "api");
            anyhow::ensure!(wanted(found.clone()), "{found:?}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

fn role(account: &Account) -> Option<String> {
    account.annotations().role.as_deref().map(str::to_owned)
}

#[tokio::test]
async fn annotations_and_uids_of_service_accounts_are_followed() {
    let cluster = Cluster::shared().await.unwrap();
    cluster.create_namespace(NAMESPACE, &[]).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.admin().unwrap(), NAMESPACE);
    let create = async || {
        cluster
            .create_service_account(NAMESPACE, "api")
            .await
            .unwrap();
        accounts.get("api").await.unwrap().metadata.uid.unwrap()
    };
    let first = create().await;
    let watched = watched(cluster).await;
    let has_uid = |found: &AccountLookup, uid: &str| matches!(found, AccountLookup::Present(account) if watched.store.has_uid(account, uid));
    watched.until(|found| has_uid(&found, &first)).await;
    assert!(watched.readiness.is_ready());
    for value in [Some("reader"), Some(""), None] {
        let patch = json!({"metadata": {"annotations": {"rolegate.dev/role": value}}});
        let patch = Patch::Merge(patch);
        accounts
            .patch("api", &PatchParams::default(), &patch)
            .await
            .unwrap();
        let has_role = |found| {
            let AccountLookup::Present(account) = found else {
                return false;
            };
            role(&account).as_deref() == value
        };
        watched.until(has_role).await;
    }
    let delete = DeleteParams::default();
    accounts.delete("api", &delete).await.unwrap();
    watched.until(|found| found == AccountLookup::Absent).await;
    let second = create().await;
    assert_ne!(first, second);
    watched.until(|found| has_uid(&found, &second)).await;
    assert!(!has_uid(&watched.store.lookup(NAMESPACE, "api"), &first));
}
