//! Runs the commands of the documentation in order, on clusters whose pods continuously request
//! credentials. Comments in a page mark outputs, files and examples; see [`directive`]. The test
//! fails if an output differs from the page's, or if a pod loses its credentials at a step that
//! does not announce that.

mod asker;
mod directive;
mod page;
mod places;
mod reader;
mod shown;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use rolegate_testkit::nodes::Options;
use rolegate_testkit::{TestCluster, repository};

use asker::Askers;
use page::{Action, Page, Start};
use places::{PAGE_FIXTURES, PageFixture};
use reader::Reader;

/// Maximum percentage of commands that may be skipped.
const SKIPPED_OF_HUNDRED: usize = 5;
/// The path of all roles that the pages' pods have. A role with another path is a different role.
const ROLES: &str = "arn:aws:iam::123456789012:role/k8s/";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: goes through all pages (make test-slow)"]
async fn docs_walk() -> anyhow::Result<()> {
    let pages = pages()?;
    let only = std::env::var("DOCS_WALK_ONLY").ok();
    check_skipped(&pages)?;
    let scenes: Vec<_> = PAGE_FIXTURES
        .iter()
        .filter(|fixture| only.as_deref().is_none_or(|only| fixture.page == only))
        .collect();
    ensure!(
        !scenes.is_empty(),
        "DOCS_WALK_ONLY is not a page that begins on a fresh cluster"
    );
    // Most of the time is spent waiting for Kubernetes, so the walks run in parallel.
    let walks = scenes
        .into_iter()
        .map(async |fixture| walk(fixture, &chain(&pages, fixture.page)?).await);
    let walked = futures::future::join_all(walks).await;
    let faults: Vec<String> = walked
        .iter()
        .filter_map(|walk| walk.as_ref().err().map(|error| format!("{error:?}")))
        .collect();
    ensure!(faults.is_empty(), "{}", faults.join("\n\n"));
    Ok(())
}

#[test]
fn each_block_of_the_pages_is_run_or_says_why_not() -> anyhow::Result<()> {
    let pages = pages()?;
    check_skipped(&pages)?;
    let walked: usize = PAGE_FIXTURES
        .iter()
        .map(|fixture| Ok(chain(&pages, fixture.page)?.len()))
        .sum::<anyhow::Result<usize>>()?;
    let nowhere = pages.iter().filter(|page| page.start == Start::Nowhere);
    ensure!(
        walked + nowhere.count() == pages.len(),
        "a page begins where no other page ends, or on a cluster that has no scene"
    );
    Ok(())
}

/// The tutorial, the guide to policies, the guides for users who migrate from other tools, and all
/// how-to pages.
fn pages() -> anyhow::Result<Vec<Page>> {
    let guides = [
        "tutorial",
        "policy",
        "from-kube2iam",
        "from-kiam",
        "from-opa",
    ];
    let mut paths: Vec<_> = guides.map(|guide| format!("docs/{guide}.md")).into();
    for entry in fs::read_dir(repository().join("docs/how-to"))? {
        let name = entry?.file_name();
        paths.push(format!("docs/how-to/{}", name.display()));
    }
    paths.sort();
    paths.iter().map(|path| Page::read(path)).collect()
}

/// Returns the pages that a reader follows one after another, starting with this one.
fn chain<'a>(pages: &'a [Page], first: &str) -> anyhow::Result<Vec<&'a Page>> {
    let first = pages.iter().find(|page| page.path == first);
    let first = first.context("the first page is not there")?;
    ensure!(
        first.start == Start::Fresh,
        "{} is not `walk: fresh`",
        first.path
    );
    let mut chain = vec![first];
    while let Some(last) = chain.last() {
        let next = Start::After(last.path.clone());
        let mut nexts = pages.iter().filter(|page| page.start == next);
        match (nexts.next(), nexts.next()) {
            (None, _) => break,
            (Some(next), None) => chain.push(next),
            (Some(one), Some(other)) => {
                anyhow::bail!("{} and {} go on after {}", one.path, other.path, last.path)
            }
        }
        ensure!(chain.len() <= pages.len(), "pages go round in a circle");
    }
    Ok(chain)
}

/// Lists the skipped commands, and fails if they are too many of the commands of the pages that
/// run. Pages without a start run nothing, because they need a component that no test cluster has,
/// such as kube2iam.
fn check_skipped(pages: &[Page]) -> anyhow::Result<()> {
    let (mut commands, mut skipped) = (0, 0);
    for page in pages {
        for step in &page.steps {
            match &step.action {
                Action::Run(_) => commands += 1,
                Action::Skip { command, reason } => {
                    if page.start != Start::Nowhere {
                        (commands, skipped) = (commands + 1, skipped + 1);
                    }
                    let first = command.lines().next().unwrap_or_default();
                    eprintln!("{}:{}: skips {first}: {reason}", page.path, step.line);
                }
                Action::Write { .. } | Action::Edit { .. } => {}
            }
        }
    }
    eprintln!("{commands} commands, of which {skipped} are skipped");
    ensure!(
        skipped * 100 <= commands * SKIPPED_OF_HUNDRED,
        "{skipped} of {commands} commands are skipped, more than {SKIPPED_OF_HUNDRED} %"
    );
    Ok(())
}

/// Follows pages on a separate cluster.
async fn walk(fixture: &PageFixture, pages: &[&Page]) -> anyhow::Result<()> {
    let cluster = &TestCluster::start(Options::default()).await?;
    for node in cluster.nodes() {
        node.shell(&new_image()).await?.ok()?;
    }
    cluster.apply(fixture.objects).await?;
    cluster.sts().deny_role(places::LOST);
    let mut askers = Askers::start(cluster, fixture.cases).await?;
    let reader = Reader::new(cluster).await?;
    let mut faults = Vec::new();
    for page in pages {
        let transcript = reader.read(page, &mut askers, &mut faults).await?;
        keep(page, &transcript)?;
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n\n"));
    askers.finish().await?;
    for call in cluster.sts().calls() {
        let role = call.role_arn;
        ensure!(
            role.is_empty() || role.starts_with(ROLES),
            "STS was asked for another role: {role}"
        );
        // Trust policies written for kube2iam deny these roles.
        let tags = call.tags;
        ensure!(tags.is_empty(), "a session of {role} has tags: {tags:?}");
    }
    Ok(())
}

/// Gives a node the image under the name of a new version.
fn new_image() -> String {
    format!(
        "ctr --address /run/containerd/containerd.sock --namespace k8s.io images tag {} {}",
        places::IMAGE,
        places::NEW_IMAGE
    )
}

/// Writes the transcript to the cache directory.
fn keep(page: &Page, transcript: &str) -> anyhow::Result<()> {
    let Some(cache) = std::env::var_os("ROLEGATE_CACHE") else {
        return Ok(());
    };
    let folder = PathBuf::from(cache).join("docs-walk");
    fs::create_dir_all(&folder)?;
    let file = page.path.replace('/', "-").replace(".md", ".txt");
    Ok(fs::write(folder.join(file), transcript)?)
}
