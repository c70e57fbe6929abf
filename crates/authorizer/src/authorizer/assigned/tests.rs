//! Tests of service accounts' roles: which inputs change them, and which leases they keep.

use std::collections::HashMap;

use rolegate_core::arn::BaseArn;
use rolegate_core::config::{Modes, RuleConfig};
use rolegate_core::enforcement::EnforcementPoint;
use rolegate_core::grant::{Association, Grant, Subject};
use rolegate_core::layer::{LayerId, Mode};
use rolegate_core::namespace::Namespace;
use rolegate_core::rule_set_builder::{AwsEnvironment, RuleUpdate};
use rolegate_core::service_account::ServiceAccount;
use rolegate_core::session_name::SessionScope;
use rolegate_core::test_util::{pod, service_account};
use rolegate_core::workload::{Change, Phase};
use rolegate_rules::store::{Report, RuleStoreWriter};
use rolegate_runtime::clock::Clock;
use rolegate_sessions::Sessions;

use super::*;
use crate::pod::{AssignedLookup, Authorization, RoleOf};

struct Fixture {
    writer: RuleStoreWriter,
    accounts: ServiceAccountStore,
    authorizer: Authorizer,
}

impl Fixture {
    /// Service account `default` exists and has no annotations. Grant `all` gives it role `reader`.
    fn new() -> Self {
        let config = RuleConfig {
            base: BaseArn::parse("arn:aws:iam::123456789012:role/").ok(),
            modes: Modes::OFF.with(LayerId::Grants, Mode::Enforce),
            ..RuleConfig::default()
        };
        let scope = SessionScope::Workload;
        let mut writer = RuleStoreWriter::new(config, EnforcementPoint::Agent, scope, 3600);
        writer.set_aws_environment(AwsEnvironment::default());
        let namespace = Namespace {
            name: "default".into(),
            ..Namespace::default()
        };
        let namespaces = Change::Snapshot(vec![namespace]);
        writer.apply(Report::Rules(RuleUpdate::Namespaces(namespaces)));
        let (sessions, _) = Sessions::remote();
        let accounts = ServiceAccountStore::default();
        accounts.apply(Change::Snapshot(vec![account("1", None)]));
        let authorizer = Authorizer::new(writer.rules(), sessions, Clock::system())
            .with_service_accounts(Some(accounts.clone()));
        let mut fixture = Self {
            writer,
            accounts,
            authorizer,
        };
        fixture.grant(vec![granting("reader")]);
        fixture
    }

    fn grant(&mut self, grants: Vec<Grant>) {
        let grants = RuleUpdate::Grants(Change::Snapshot(grants));
        self.writer.apply(Report::Rules(grants));
    }

    fn annotate(&self, role: Option<&str>) {
        self.accounts.apply(Change::Apply(account("1", role)));
    }

    fn entry(&self, pod: Workload) -> PodEntry {
        let decided = self.authorizer.decide(&pod, None);
        PodEntry::new(Arc::new(pod), decided)
    }

    /// Returns the names of the allowed roles by audience; `-` for a denied one.
    fn roles(&self, entry: &PodEntry) -> HashMap<String, String> {
        let roles = self.authorizer.assigned_roles(entry).unwrap();
        let now = self.authorizer.now();
        let role = |role: &Arc<PodEntry>| {
            let RoleOf::ServiceAccount { audience } = role.role_of.clone() else {
                panic!("{role:?} is the pod's own");
            };
            let name = match &self.authorizer.authorization(role, now).authorization {
                Authorization::Allowed(allowed) => allowed.role.name().to_owned(),
                _ => "-".to_owned(),
            };
            (audience.as_deref().unwrap_or("default").to_owned(), name)
        };
        roles.entries().iter().map(role).collect()
    }

    fn default_role(&self, entry: &PodEntry) -> Option<String> {
        self.roles(entry).remove("default")
    }
}

fn account(uid: &str, role: Option<&str>) -> ServiceAccount {
    ServiceAccount {
        uid: uid.into(),
        ..service_account(role)
    }
}

fn granting(role: &str) -> Grant {
    Grant {
        name: role.into(),
        roles: vec![role.into()],
        subjects: vec![Subject {
            namespaces: vec!["default".into()],
            ..Subject::default()
        }],
        ..Grant::default()
    }
}

fn associating(name: &str, role: &str, audience: Option<&str>) -> Grant {
    Grant {
        name: name.into(),
        associations: vec![Association {
            namespace: "default".into(),
            service_account: "default".into(),
            role: role.into(),
            audience: audience.map(Into::into),
            ..Association::default()
        }],
        ..Grant::default()
    }
}

#[test]
fn a_change_of_the_account_applies_to_the_next_request() {
    let fixture = Fixture::new();
    let entry = fixture.entry(pod(None));
    assert_eq!(fixture.default_role(&entry), None);
    for (annotation, expected) in [
        (Some("reader"), Some("reader")),
        (Some("writer"), Some("-")),
        (Some(""), None),
        (Some("reader"), Some("reader")),
        (None, None),
    ] {
        fixture.annotate(annotation);
        assert_eq!(
            fixture.default_role(&entry).as_deref(),
            expected,
            "{annotation:?}"
        );
    }
}

#[test]
fn a_change_of_the_rules_applies_to_the_next_request() {
    let mut fixture = Fixture::new();
    let entry = fixture.entry(pod(None));
    fixture.annotate(Some("reader"));
    assert_eq!(fixture.default_role(&entry).as_deref(), Some("reader"));
    fixture.grant(Vec::new());
    assert_eq!(fixture.default_role(&entry).as_deref(), Some("-"));
    fixture.annotate(None);
    fixture.grant(vec![
        associating("a", "one", None),
        associating("b", "two", Some("two.example")),
    ]);
    let roles = fixture.roles(&entry);
    assert_eq!(roles.len(), 2);
    assert_eq!((&*roles["default"], &*roles["two.example"]), ("one", "two"));
    // Two associations that differ give no role.
    fixture.grant(vec![
        associating("a", "one", None),
        associating("b", "two", None),
    ]);
    assert_eq!(fixture.default_role(&entry).as_deref(), Some("-"));
}

#[test]
fn a_deleted_account_ends_the_service() {
    let fixture = Fixture::new();
    let entry = fixture.entry(pod(None));
    fixture.annotate(Some("reader"));
    assert!(fixture.default_role(&entry).is_some());
    fixture.accounts.apply(Change::Delete(account("1", None)));
    let roles = fixture.authorizer.assigned_roles(&entry).unwrap();
    assert!(matches!(roles.find(None), AssignedLookup::Unknown));
    assert!(roles.entries().is_empty());
    // Another account of the same name.
    fixture
        .accounts
        .apply(Change::Apply(account("2", Some("reader"))));
    assert!(fixture.default_role(&entry).is_some());
}

#[test]
fn nothing_is_assigned_before_accounts_and_rules_are_loaded() {
    let fixture = Fixture::new();
    let entry = fixture.entry(pod(None));
    let find = |authorizer: &Authorizer| authorizer.assigned_roles(&entry).unwrap().find(None);
    let unsynced = ServiceAccountStore::default();
    let early = fixture
        .authorizer
        .clone()
        .with_service_accounts(Some(unsynced));
    assert!(matches!(find(&early), AssignedLookup::Unknown));
    assert!(matches!(find(&fixture.authorizer), AssignedLookup::NoRole));
    let writer = RuleStoreWriter::new(
        RuleConfig::default(),
        EnforcementPoint::Agent,
        SessionScope::Workload,
        3600,
    );
    let (sessions, _) = Sessions::remote();
    let early = Authorizer::new(writer.rules(), sessions, Clock::system())
        .with_service_accounts(Some(fixture.accounts.clone()));
    assert!(matches!(find(&early), AssignedLookup::Unknown));
    let off = fixture.authorizer.clone().with_service_accounts(None);
    assert!(off.assigned_roles(&entry).is_none());
}

#[test]
fn which_pods_have_the_role() {
    let fixture = Fixture::new();
    fixture.annotate(Some("reader"));
    let role = |change: fn(&mut Workload)| {
        let mut pod = pod(None);
        change(&mut pod);
        fixture.default_role(&fixture.entry(pod))
    };
    let reader = Some("reader".to_owned());
    assert_eq!(role(|pod| pod.phase = Phase::Pending), reader);
    assert_eq!(role(|pod| pod.addresses.clear()), reader);
    assert_eq!(role(|pod| pod.host_network = true), reader);
    assert_eq!(role(|pod| pod.mirror = true).as_deref(), Some("-"));
    assert_eq!(role(|pod| pod.service_account = "other".into()), None);
    for phase in [Phase::Succeeded, Phase::Failed] {
        let finished = Workload { phase, ..pod(None) };
        assert_eq!(fixture.default_role(&fixture.entry(finished)), None);
    }
}

#[test]
fn the_pods_own_role_is_another_one() {
    let mut fixture = Fixture::new();
    fixture.grant(vec![granting("reader"), granting("own")]);
    fixture.annotate(Some("reader"));
    let entry = fixture.entry(pod(Some("own")));
    let own = fixture
        .authorizer
        .authorization(&entry, fixture.authorizer.now());
    assert_eq!(own.lease().unwrap().cell().key().role.name(), "own");
    assert_eq!(fixture.default_role(&entry).as_deref(), Some("reader"));
    let key = |entry: &PodEntry| {
        let roles = fixture.authorizer.assigned_roles(entry).unwrap();
        let decided = roles.entries()[0].decided.load_full();
        decided.lease().unwrap().cell().key().clone()
    };
    // The pod's annotations do not choose anything of this session.
    let mut named = pod(Some("own"));
    named.role_request.session_name = Some("default.mine".into());
    named.role_request.external_id = Some("stranger".into());
    let named = fixture.entry(named);
    assert_eq!(key(&named), key(&entry));
    assert_eq!(&*key(&named).name, "default.default");
}

#[test]
fn an_unchanged_role_keeps_its_lease() {
    let mut fixture = Fixture::new();
    fixture.annotate(Some("reader"));
    let entry = fixture.entry(pod(None));
    let lease = |entry: &PodEntry| {
        let roles = fixture.authorizer.assigned_roles(entry).unwrap();
        let decided = roles.entries()[0].decided.load_full();
        Arc::as_ptr(decided.lease().unwrap())
    };
    let first = lease(&entry);
    assert_eq!(lease(&entry), first);
    // Another field of the pod.
    let mut moved = pod(None);
    moved.addresses.clear();
    let before = entry.assigned.load_full();
    let moved = Arc::new(moved);
    let again = fixture
        .authorizer
        .assign_roles(&moved, before.as_deref())
        .unwrap();
    let decided = again.entries()[0].decided.load_full();
    assert_eq!(Arc::as_ptr(decided.lease().unwrap()), first);
    let before = entry.assigned.load_full().unwrap();
    fixture.grant(vec![granting("reader"), granting("unrelated")]);
    let after = fixture.authorizer.assigned_roles(&entry).unwrap();
    assert!(before.same_responses(&after));
    let decided = after.entries()[0].decided.load_full();
    assert_eq!(Arc::as_ptr(decided.lease().unwrap()), first);
    // A broker compares the decisions to find what to send.
    fixture.grant(Vec::new());
    let denied = fixture.authorizer.assigned_roles(&entry).unwrap();
    assert!(!after.same_responses(&denied));
}
