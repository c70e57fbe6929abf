use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use rolegate_core::config::RuleConfig;
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::rule_set_builder::RuleUpdate;
use rolegate_core::service_account::{ServiceAccount, ServiceAccountAnnotations};
use rolegate_core::session_name::SessionScope;
use rolegate_core::workload::Change;
use rolegate_review::mutation::{Method, Pod};
use rolegate_rules::store::{Report as RuleReport, RuleStoreWriter};
use rolegate_runtime::test_util::Exposition;
use serde_json::json;
use serde_json::value::to_raw_value;

use super::*;

const ROLE: &str = "arn:aws:iam::123456789012:role/reader";
const WAIT: Duration = Duration::from_secs(2);

struct Fixture {
    injection: Arc<Injection>,
    accounts: Accounts,
    config_map: watch::Sender<Option<Arc<PodIdentityConfig>>>,
    registry: Registry,
    reports: Arc<Mutex<Vec<Report>>>,
    _writer: RuleStoreWriter,
}

impl Fixture {
    /// A fixture whose caches are loaded. It knows the old service account `old`.
    fn new() -> Self {
        let fixture = Self::unloaded();
        fixture
            .accounts
            .apply(Change::Snapshot(vec![account("old", "")]));
        fixture.config_map.send_replace(Some(Arc::default()));
        fixture
    }

    fn unloaded() -> Self {
        let mut writer = RuleStoreWriter::new(
            RuleConfig::default(),
            EnforcementPoint::Admission,
            SessionScope::Workload,
            900,
        );
        writer.set_aws_environment(Default::default());
        let namespaces = RuleUpdate::Namespaces(Change::Snapshot(Vec::new()));
        writer.apply(RuleReport::Rules(namespaces));
        let mut registry = Registry::default();
        let accounts = Accounts::default();
        let reports = Arc::<Mutex<Vec<Report>>>::default();
        let reported = reports.clone();
        let (config_map, receiver) = watch::channel(None);
        let injection = Injection::new(InjectionInputs {
            settings: InjectionSettings::default(),
            wait: WAIT,
            rules: writer.rules(),
            accounts: accounts.clone(),
            config_map: receiver,
            identities: watch::channel(Some(Arc::default())).1,
            metrics: InjectionMetrics::register(&mut registry, None),
            reporter: Arc::new(move |report| reported.lock().push(report.clone())),
        });
        Self {
            injection,
            accounts,
            config_map,
            registry,
            reports,
            _writer: writer,
        }
    }

    /// Requests a pod in the background.
    fn request(&self, account: &str) -> tokio::task::JoinHandle<Result<Mutation, NotSynced>> {
        let (injection, account) = (self.injection.clone(), account.to_owned());
        tokio::spawn(async move {
            let pod =
                json!({"metadata": {"name": "api-0"}, "spec": {"containers": [{"name": "api"}]}});
            let pod = to_raw_value(&pod).unwrap();
            let pod = Pod::parse(&pod).unwrap();
            let requested = RequestedPod {
                namespace: "shop",
                account: &account,
                name: "api-0",
            };
            let change = PodChange {
                pod: &pod,
                old: None,
                namespace: "shop",
                jitter: 0,
            };
            Ok(injection.mutate(requested, &change).await?.unwrap())
        })
    }

    fn counts(&self, line: &str) -> bool {
        Exposition::encode(&self.registry).contains(line)
    }
}

fn account(name: &str, role: &str) -> ServiceAccount {
    ServiceAccount {
        namespace: "shop".into(),
        name: name.into(),
        uid: name.into(),
        annotations: ServiceAccountAnnotations {
            web_identity_role: (!role.is_empty()).then(|| role.into()),
            ..ServiceAccountAnnotations::default()
        },
    }
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn pods_of_old_accounts_never_wait() {
    let fixture = Fixture::new();
    let begin = Instant::now();
    let mutation = fixture.request("old").await.unwrap().unwrap();
    assert_eq!(mutation, Mutation::default());
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert!(fixture.counts(r#"injection_pods_total{method="none"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn pods_wait_for_an_account_and_for_its_annotation() {
    let fixture = Fixture::new();
    let request = fixture.request("new");
    settle().await;
    assert!(fixture.counts("injection_waiting_pods 1"));
    tokio::time::advance(WAIT / 4).await;
    fixture.accounts.apply(Change::Apply(account("new", "")));
    settle().await;
    assert!(!request.is_finished());
    tokio::time::advance(WAIT / 4).await;
    fixture.accounts.apply(Change::Apply(account("new", ROLE)));
    let mutation = request.await.unwrap().unwrap();
    assert!(mutation.gives_credentials && mutation.warnings.is_empty());
    assert!(fixture.counts("injection_waiting_pods 0"));
    assert!(fixture.counts(r#"injection_pods_total{method="sts_web_identity"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_a_new_account_without_a_role_waits_until_the_account_is_old() {
    let fixture = Fixture::new();
    fixture.accounts.apply(Change::Apply(account("new", "")));
    tokio::time::advance(WAIT / 2).await;
    let begin = Instant::now();
    let mutation = fixture.request("new").await.unwrap().unwrap();
    assert_eq!(mutation, Mutation::default());
    assert_eq!(begin.elapsed(), WAIT / 2);
    assert!(fixture.reports.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_account_is_reported() {
    let fixture = Fixture::new();
    let begin = Instant::now();
    let mutation = fixture.request("unknown").await.unwrap().unwrap();
    assert_eq!(begin.elapsed(), WAIT);
    assert!(mutation.patch.is_empty());
    assert!(mutation.warnings[0].contains("not known yet"));
    assert!(fixture.counts(r#"missed_total{reason="unknown_service_account"} 1"#));
    assert_eq!(fixture.reports.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_role_that_comes_too_late_is_reported() {
    let fixture = Fixture::new();
    fixture.request("old").await.unwrap().unwrap();
    fixture.accounts.apply(Change::Apply(account("new", "")));
    fixture.request("new").await.unwrap().unwrap();
    fixture.accounts.apply(Change::Apply(account("new", ROLE)));
    fixture.injection.report_late_roles();
    let reports = fixture.reports.lock();
    let [report] = &**reports else {
        panic!("{reports:?}")
    };
    assert!(report.message.contains("api-0"), "{report:?}");
    assert!(fixture.counts(r#"missed_total{reason="late_role"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn only_so_many_pods_wait() {
    let fixture = Fixture::new();
    let waiting: Vec<_> = (0..waiting::MAX_WAITING_OF_NAMESPACE)
        .map(|_| fixture.request("new"))
        .collect();
    settle().await;
    let begin = Instant::now();
    let mutation = fixture.request("new").await.unwrap().unwrap();
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert!(mutation.warnings[0].contains("too many pods"));
    fixture.accounts.apply(Change::Apply(account("new", ROLE)));
    for request in waiting {
        assert!(request.await.unwrap().unwrap().gives_credentials);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_decided_before_the_caches_are_loaded() {
    let fixture = Fixture::unloaded();
    let late = fixture.request("old");
    let begin = Instant::now();
    assert_eq!(late.await.unwrap(), Err(NotSynced));
    assert_eq!(begin.elapsed(), WAIT);
    let request = fixture.request("old");
    settle().await;
    fixture
        .accounts
        .apply(Change::Snapshot(vec![account("old", ROLE)]));
    settle().await;
    assert!(!request.is_finished());
    fixture.config_map.send_replace(Some(Arc::default()));
    assert!(request.await.unwrap().unwrap().gives_credentials);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_role_is_a_warning() {
    let fixture = Fixture::new();
    fixture
        .accounts
        .apply(Change::Apply(account("new", "arn:aws:iam::1:user/x")));
    let mutation = fixture.request("new").await.unwrap().unwrap();
    assert!(mutation.patch.is_empty());
    assert!(
        mutation.warnings[0].contains("is not a role ARN"),
        "{mutation:?}"
    );
    assert!(fixture.counts(r#"missed_total{reason="invalid_role"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn the_config_map_gives_roles() {
    let fixture = Fixture::new();
    let config = format!(r#"{{"sh*/old": {{"RoleARN": "{ROLE}"}}}}"#);
    let config = PodIdentityConfig::parse(&config).unwrap();
    fixture.config_map.send_replace(Some(Arc::new(config)));
    let identity = fixture.injection.identity("shop", "old").unwrap();
    assert_eq!(identity.method, Method::WebIdentity { role: ROLE.into() });
    assert_eq!(fixture.injection.identity("other", "old"), None);
}
