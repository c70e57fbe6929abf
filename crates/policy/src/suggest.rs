//! Suggests grants that cover exactly the running pods, for the step from open namespaces to
//! default deny.

use std::collections::{BTreeMap, BTreeSet};

use std::sync::Arc;

use jiff::Timestamp;
use rolegate_core::arn::RoleArn;
use rolegate_core::decision::{Decision, Explanation, RuleSet};
use rolegate_core::grant::{Grant, MAX_LIST, Subject};
use rolegate_core::layer::grants::GrantsLayer;
use rolegate_core::layer::{AccessRequest, Layer, Verdict};
use rolegate_core::workload::{Phase, Workload};
use rolegate_review::{UnnamedRoleRequest, WebIdentity};

use crate::document::{self, Names, is_plain_name, role_text};
use rolegate_report::text::count;

/// Suggested grants.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Suggestion {
    /// The missing grants, by namespace and service account.
    pub grants: Vec<Suggested>,
    /// The number of pods with a role that grants cover already, or with the default role of all
    /// pods.
    pub covered: usize,
    /// The number of pods that have no role now, for whatever reason.
    pub without_role: usize,
    /// Users of roles without a suggested grant, with the reason.
    pub left_out: Vec<LeftOut>,
}

/// One grant, and the number of its pods.
#[derive(Debug, Clone, PartialEq)]
pub struct Suggested {
    /// The grant.
    pub grant: Grant,
    /// The number of pods that it covers now.
    pub pods: usize,
}

/// A pod or service account without a suggested grant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// Its name: `pod NAMESPACE/NAME` or `service account NAMESPACE/NAME`.
    pub who: String,
    /// The role, if one is named.
    pub role: Option<String>,
    /// The reason.
    pub reason: String,
}

/// The users of roles.
#[derive(Debug, Clone, Copy)]
pub struct Users<'a> {
    /// Pods with their annotations' requests.
    pub pods: &'a [Workload],
    /// Web identity roles of pods and service accounts.
    pub web_identity: &'a [WebIdentity],
}

/// The roles of one service account, each with the external IDs in use.
type Roles = BTreeMap<String, Running>;

/// Names of pods with their namespaces.
type Pods = BTreeSet<(Arc<str>, Arc<str>)>;

#[derive(Default)]
struct Running {
    external_ids: BTreeSet<String>,
    pods: Pods,
}

/// Returns minimal grants for pods that have a role now and that `grants` do not cover, and for web
/// identity roles, which admission validates with grants too. Roles, service accounts and external
/// IDs are named exactly. As with every grant, a pod may always omit its external ID. Finished pods
/// are included with `finished` only. Grants are sorted by name.
pub fn suggest(
    rules: &RuleSet,
    grants: &GrantsLayer,
    users: Users<'_>,
    finished: bool,
    now: Timestamp,
) -> Suggestion {
    let mut found = Suggestion::default();
    let mut accounts: BTreeMap<(String, String), Roles> = BTreeMap::new();
    let (mut covered, mut with_role, mut all) = (Pods::new(), Pods::new(), Pods::new());
    let counts = |workload: &&Workload| {
        finished || !matches!(workload.phase, Phase::Succeeded | Phase::Failed)
    };
    let asking = users.web_identity.iter().flat_map(|one| &one.asking);
    let tokens = asking.filter(counts).map(|workload| (workload, true));
    let pods = users.pods.iter().filter(counts);
    for (workload, by_token) in pods.map(|pod| (pod, false)).chain(tokens) {
        // A service account has no pod.
        let pod = (!workload.name.is_empty())
            .then(|| (workload.namespace.clone(), workload.name.clone()));
        all.extend(pod.clone());
        let explanation = rules.explain(workload, now);
        let need = match (&explanation.decision, &explanation.role) {
            (Decision::Allow { .. }, Some(role)) => need(rules, grants, workload, role, now),
            // AWS issues the role regardless of rules, until admission sees the pod again.
            _ if by_token => Need::Impossible(refused_now(&explanation)),
            _ => continue,
        };
        with_role.extend(pod.clone());
        match (need, &explanation.role) {
            (Need::None, _) => covered.extend(pod),
            (Need::Grant, Some(role)) => {
                let account = (
                    workload.namespace.to_string(),
                    workload.service_account.to_string(),
                );
                let roles = accounts.entry(account).or_default();
                let running = roles
                    .entry(role_text(role, rules.base.as_ref()))
                    .or_default();
                running.pods.extend(pod);
                let id = workload
                    .role_request
                    .external_id
                    .as_deref()
                    .map(str::to_owned);
                running.external_ids.extend(id);
            }
            (Need::Grant, None) => {}
            (Need::Impossible(reason), role) => found.left_out.push(LeftOut {
                who: who(workload),
                role: role.as_ref().map(ToString::to_string),
                reason,
            }),
        }
    }
    let unnamed = users.web_identity.iter().flat_map(|one| &one.unnamed);
    for UnnamedRoleRequest { pod, path } in unnamed.filter(|one| counts(&&one.pod)) {
        with_role.insert((pod.namespace.clone(), pod.name.clone()));
        found.left_out.push(LeftOut {
            who: who(pod),
            role: None,
            reason: format!(
                "{path} requests credentials from AWS without naming a role, which admission denies once \
                 grants are enforced: set AWS_ROLE_ARN"
            ),
        });
    }
    found.covered = covered.len();
    found.without_role = all.difference(&with_role).count();
    found.left_out.sort();
    let names = grants
        .grants()
        .iter()
        .map(|grant| &*grant.name)
        .chain(grants.invalid().iter().map(|(name, _)| &**name));
    let mut names = Names::taken(names);
    for ((namespace, account), roles) in accounts {
        found
            .grants
            .extend(grants_of(&namespace, &account, roles, &mut names));
    }
    found
}

fn who(workload: &Workload) -> String {
    let (namespace, name) = (&workload.namespace, &workload.name);
    if name.is_empty() {
        format!("service account {namespace}/{}", workload.service_account)
    } else {
        format!("pod {namespace}/{name}")
    }
}

fn refused_now(explanation: &Explanation) -> String {
    match &explanation.decision {
        Decision::Deny(denial) => {
            format!("{} denies it already: {}", denial.denied_by, denial.reason)
        }
        _ => "the rules do not contain its namespace".into(),
    }
}

enum Need {
    None,
    Grant,
    Impossible(String),
}

fn need(
    rules: &RuleSet,
    grants: &GrantsLayer,
    workload: &Workload,
    role: &RoleArn,
    now: Timestamp,
) -> Need {
    let Some(namespace) = rules.namespaces.get(&workload.namespace) else {
        return Need::None;
    };
    let ask = AccessRequest {
        workload,
        role,
        is_default: rules.default_role.as_ref() == Some(role),
        namespace,
        now,
    };
    let Verdict::Deny { reason, .. } = grants.evaluate(&ask) else {
        return Need::None;
    };
    if !grants.covering(&ask).is_empty() {
        // A grant in addition to those that name the role could remove their limits.
        return Need::Impossible(reason);
    }
    if !is_plain_name(&workload.namespace) || !is_plain_name(&workload.service_account) {
        return Need::Impossible(
            "the name of its namespace or service account is not valid in Kubernetes".into(),
        );
    }
    Need::Grant
}

/// Returns grants. Roles with the same external IDs share one, so that none gets another's.
fn grants_of(namespace: &str, account: &str, roles: Roles, names: &mut Names) -> Vec<Suggested> {
    let mut by_ids: BTreeMap<BTreeSet<String>, Vec<(String, Pods)>> = BTreeMap::new();
    for (role, running) in roles {
        let alike = by_ids.entry(running.external_ids).or_default();
        alike.push((role, running.pods));
    }
    let mut made = Vec::new();
    for (ids, roles) in by_ids {
        let ids: Vec<_> = ids.into_iter().collect();
        let no_ids: &[String] = &[];
        let lists = if ids.is_empty() {
            vec![no_ids]
        } else {
            ids.chunks(MAX_LIST).collect()
        };
        for ids in lists {
            for roles in roles.chunks(MAX_LIST) {
                made.push(Suggested {
                    pods: roles
                        .iter()
                        .flat_map(|(_, pods)| pods)
                        .collect::<BTreeSet<_>>()
                        .len(),
                    grant: Grant {
                        name: names.next(&format!("{namespace}.{account}")).into(),
                        roles: roles.iter().map(|(role, _)| role.clone()).collect(),
                        subjects: vec![Subject {
                            namespaces: vec![namespace.to_owned()],
                            service_accounts: vec![account.to_owned()],
                            ..Subject::default()
                        }],
                        external_ids: ids.to_vec(),
                        ..Grant::default()
                    },
                });
            }
        }
    }
    made
}

impl Suggestion {
    /// Formats a stream of YAML that is ready to apply, with a comment above each grant.
    ///
    /// # Errors
    /// See [`document::yaml`].
    pub fn yaml(&self) -> Result<String, serde_saphyr::SerializeError> {
        document::yaml_stream(self.grants.iter().map(|suggested| {
            let comment = match suggested.pods {
                0 => "a service account names this role".to_owned(),
                pods => format!("{} with this role now", count(pods, "pod runs", "pods run")),
            };
            (&suggested.grant, vec![comment])
        }))
    }

    /// Returns the grants as one JSON list, as `kubectl apply` accepts it.
    pub fn json(&self) -> serde_json::Value {
        let items = self.grants.iter();
        document::list(items.map(|suggested| &suggested.grant))
    }

    /// Returns notes about the grants, one per line.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = vec![format!(
            "{} suggested; {} already covered or use the default role; {} without a role now",
            count(self.grants.len(), "grant is", "grants are"),
            count(self.covered, "pod is", "pods are"),
            count(self.without_role, "pod is", "pods are"),
        )];
        notes.extend(self.left_out.iter().map(|left| {
            let role = left.role.as_ref();
            let role = role.map_or_else(String::new, |role| format!(" with role {role}"));
            format!("no grant for {}{role}: {}", left.who, left.reason)
        }));
        notes
    }
}

#[cfg(test)]
mod tests;
