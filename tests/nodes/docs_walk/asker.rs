//! Pods that continuously request credentials, and the results of each pod.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Instant;

use anyhow::{Context, ensure};
use rolegate_testkit::nodes::ClientPod;
use rolegate_testkit::{TestCluster, eventually};

use super::places::Case;
use crate::ask::{CREDENTIALS, DEADLINE};

/// Prints each change of the status that a pod gets, and counts its requests in /tmp/asked. `000`
/// means no response.
const ASK: &str = r#"n=0 last=
trap 'exit 0' TERM
while :; do
	now=$(curl -s -m 20 -o /dev/null -w '%{http_code}' "$URL") || :
	n=$((n + 1))
	if [ "$now" != "$last" ]; then echo "status $now"; fi
	last=$now
	echo $n >/tmp/asked
	sleep 0.1
done"#;
/// The status of credentials.
const GIVEN: &str = "200";

/// A reader's position in the pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) page: String,
    pub(super) line: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.page, self.line)
    }
}

/// The requesting pods of a cluster.
pub(super) struct Askers<'a> {
    cluster: &'a TestCluster,
    cases: &'a [Case],
    /// The statuses of each case so far.
    seen: BTreeMap<&'a str, Vec<String>>,
    /// The cases that a page announced to lose or gain credentials, that have not changed yet, with
    /// the position of the announcement.
    stopping: BTreeMap<String, Position>,
    opening: BTreeMap<String, Position>,
    /// The cases that have had credentials at some time.
    worked: BTreeSet<&'a str>,
}

impl<'a> Askers<'a> {
    /// Starts the pods, and waits until each has had a response.
    pub(super) async fn start(cluster: &'a TestCluster, cases: &'a [Case]) -> anyhow::Result<Self> {
        for case in cases {
            let script = format!("URL={CREDENTIALS}{}\n{ASK}", case.asks());
            let client = ClientPod {
                namespace: case.namespace,
                name: case.name,
                role: case.role,
                service_account: None,
                node: Some(case.node),
                script: Some(&script),
            };
            cluster.run_client(&client).await?;
        }
        let mut askers = Self {
            cluster,
            cases,
            seen: BTreeMap::new(),
            stopping: BTreeMap::new(),
            opening: BTreeMap::new(),
            worked: BTreeSet::new(),
        };
        eventually(DEADLINE, async || {
            for case in cases {
                ensure!(
                    !statuses(cluster, case).await?.is_empty(),
                    "{} is silent",
                    case.name
                );
            }
            Ok(())
        })
        .await?;
        askers.take().await?;
        Ok(askers)
    }

    /// Announces that the next step makes these cases lose or gain credentials.
    pub(super) fn announce(
        &mut self,
        position: &Position,
        stops: &[String],
        opens: &[String],
    ) -> anyhow::Result<()> {
        for name in stops.iter().chain(opens) {
            ensure!(
                self.cases.iter().any(|case| case.name == name),
                "{position}: there is no case {name:?}"
            );
        }
        for (names, changes) in [(stops, &mut self.stopping), (opens, &mut self.opening)] {
            changes.extend(names.iter().map(|name| (name.clone(), position.clone())));
        }
        Ok(())
    }

    /// Checks the changes since the last call. Fails if no step announced a change.
    pub(super) async fn look(&mut self, position: &Position) -> anyhow::Result<()> {
        for change in self.take().await? {
            let Change { case, from, to } = change;
            eprintln!("    {}: {from} → {to} (at {position})", case.name);
            let allowed = if to == GIVEN && !case.entitled {
                self.opening.remove(case.name)
            } else if from == GIVEN && to != GIVEN {
                self.stopping.remove(case.name)
            } else {
                continue;
            };
            ensure!(
                allowed.is_some(),
                "{position}: {} had {from} and has {to} now, and no step has said so",
                case.name
            );
        }
        Ok(())
    }

    /// Waits until all announced changes have happened.
    pub(super) async fn settle(&mut self, position: &Position) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.look(position).await?;
            if self.stopping.is_empty() && self.opening.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "announced, and has not come: stops {:?}, opens {:?}",
                self.stopping,
                self.opening
            );
        }
    }

    /// Fails unless each pod that may have a role has had it, and all pods still send requests.
    pub(super) async fn finish(&mut self) -> anyhow::Result<()> {
        for case in self.cases {
            ensure!(
                !case.entitled || self.worked.contains(case.name),
                "{} never got credentials, so nothing was seen",
                case.name
            );
            // The file is empty for a moment while the pod writes it.
            let read =
                "until n=$(cat /tmp/asked) && [ -n \"$n\" ]; do sleep 0.1; done; echo \"$n\"";
            let asked = ["sh", "-c", read];
            let asked = self.cluster.exec(case.namespace, case.name, &asked).await?;
            let asked: usize = asked.ok()?.trim().parse().context("no count")?;
            ensure!(asked > 20, "{} asked {asked} times only", case.name);
        }
        Ok(())
    }

    /// Returns the pods' responses since the last call.
    async fn take(&mut self) -> anyhow::Result<Vec<Change<'a>>> {
        let mut changes = Vec::new();
        for case in self.cases {
            let all = statuses(self.cluster, case).await?;
            let seen = self.seen.entry(case.name).or_default();
            let first = seen.len().max(1);
            for at in first..all.len() {
                if let (Some(from), Some(to)) = (all.get(at - 1), all.get(at)) {
                    let (from, to) = (from.clone(), to.clone());
                    changes.push(Change { case, from, to });
                }
            }
            if all.iter().any(|status| status == GIVEN) {
                self.worked.insert(case.name);
            }
            *seen = all;
        }
        Ok(changes)
    }
}

struct Change<'a> {
    case: &'a Case,
    from: String,
    to: String,
}

/// Returns the distinct consecutive statuses that a pod has got.
async fn statuses(cluster: &TestCluster, case: &Case) -> anyhow::Result<Vec<String>> {
    let log = ["logs", "-n", case.namespace, case.name, "--tail=-1"];
    let log = cluster.kubectl(&log).await?;
    let statuses = log.lines().filter_map(|line| line.strip_prefix("status "));
    Ok(statuses.map(str::to_owned).collect())
}
