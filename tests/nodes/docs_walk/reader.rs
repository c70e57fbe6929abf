//! A reader who follows pages on a cluster and compares the results.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Program;

use anyhow::{Context, bail, ensure};
use rolegate_testkit::nodes::Ran;
use rolegate_testkit::{Forward, Moto, TestCluster, eventually, repository};
use tempfile::TempDir;

use super::asker::{Askers, Position};
use super::directive::Node;
use super::page::{Action, Command, Page, Step};
use super::places::{self, NODE, SECOND};
use super::shown::is_shown;
use crate::ask::DEADLINE;

/// Number of faults that end the walk, since later ones usually follow from the first.
const MANY: usize = 5;
/// The account before rolegate is installed: the nodes' role, and a node.
const ACCOUNT: &str = "aws iam create-role --role-name node --assume-role-policy-document '{}'
aws ec2 run-instances --image-id ami-12345678 --instance-type t3.small";

/// The rendered chart of the reader.
const CHART: &str = "apiVersion: apps/v1
kind: Deployment
metadata: { name: shop, namespace: cases }
spec:
  selector: { matchLabels: { app: shop } }
  template:
    metadata:
      labels: { app: shop }
      annotations: { iam.amazonaws.com/role: case-reader }
    spec:
      containers: [{ name: shop, image: registry.example/app }]
";

/// A reader with a clone of the repository and an AWS account.
pub(super) struct Reader<'a> {
    cluster: &'a TestCluster,
    clone: TempDir,
    moto: Moto,
    _moto_there: Forward,
    table: Vec<(&'static str, String)>,
}

impl<'a> Reader<'a> {
    pub(super) async fn new(cluster: &'a TestCluster) -> anyhow::Result<Self> {
        let clone = tempfile::tempdir()?;
        for folder in ["deploy", "docs"] {
            let copied = Program::new("cp")
                .arg("--recursive")
                .arg(repository().join(folder))
                .arg(clone.path())
                .status()?;
            ensure!(copied.success(), "cannot copy {folder}");
        }
        for entry in fs::read_dir(clone.path().join("deploy"))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let file = entry.file_name();
                let file = file.to_str().context("a manifest's name is not text")?;
                fs::write(entry.path(), cluster.manifest(file)?)?;
            }
        }
        let bin = clone.path().join(".bin");
        fs::create_dir(&bin)?;
        std::os::unix::fs::symlink(rolegate_testkit::python::program("aws")?, bin.join("aws"))?;
        fs::write(clone.path().join("chart.yaml"), CHART)?;
        let moto = Moto::start().await?;
        let there = Forward::new(cluster.control_plane_netns()?, moto.port())?;
        let table = places::table(cluster);
        let reader = Self {
            cluster,
            clone,
            moto,
            _moto_there: there,
            table,
        };
        reader.at_home(ACCOUNT).await?.ok()?;
        Ok(reader)
    }

    /// Follows a page from start to end, and returns a transcript and the differences from the
    /// page. It continues after a fault, so that one run reports several.
    pub(super) async fn read(
        &self,
        page: &Page,
        askers: &mut Askers<'_>,
        faults: &mut Vec<String>,
    ) -> anyhow::Result<String> {
        let mut transcript = format!("{}\n", page.path);
        for step in &page.steps {
            let position = Position {
                page: page.path.clone(),
                line: step.line,
            };
            if let Err(fault) = self.step(&position, step, askers, &mut transcript).await {
                eprintln!("FAULT {position}: {fault:#}");
                faults.push(format!("{position}: {fault:#}"));
            }
            ensure!(
                faults.len() < MANY,
                "{transcript}\n\n{}\n\ntoo much is wrong to go on",
                faults.join("\n\n")
            );
        }
        Ok(transcript)
    }

    async fn step(
        &self,
        position: &Position,
        step: &Step,
        askers: &mut Askers<'_>,
        transcript: &mut String,
    ) -> anyhow::Result<()> {
        askers.announce(position, &step.stops, &step.opens)?;
        let done = match &step.action {
            Action::Run(command) => self.run(position, command, transcript).await,
            Action::Skip { command, reason } => {
                writeln!(transcript, "\n{position}: skipped: {command}\n({reason})")?;
                Ok(())
            }
            Action::Write { file, text } => self.write(file, text),
            Action::Edit { file, diff } => self.edit(file, diff),
        };
        if done.is_ok() && !(step.stops.is_empty() && step.opens.is_empty()) {
            askers.settle(position).await?;
        }
        // Whatever the step did, no pod may have lost its credentials without an announcement.
        askers.look(position).await.and(done)
    }

    async fn run(
        &self,
        position: &Position,
        command: &Command,
        transcript: &mut String,
    ) -> anyhow::Result<()> {
        let script = self.translate(&command.text);
        eprintln!("{position}: {}", command.text.trim_end());
        let once = async || {
            let ran = match command.on_node {
                Some(Node::First) => self.cluster.node(NODE)?.shell(&script).await?,
                Some(Node::Second) => self.cluster.node(SECOND)?.shell(&script).await?,
                None => self.at_home(&script).await?,
            };
            check(command, &ran)?;
            Ok(ran)
        };
        let ran = if command.eventually {
            eventually(DEADLINE, once).await
        } else {
            once().await
        };
        let ran = ran.with_context(|| format!("$ {script}"))?;
        writeln!(transcript, "\n{position}\n$ {}", script.trim_end())?;
        write!(transcript, "{}{}", ran.stdout, ran.stderr)?;
        Ok(())
    }

    /// Runs a script on the reader's machine, in the clone.
    async fn at_home(&self, script: &str) -> anyhow::Result<Ran> {
        let script = format!("PATH=\"$PWD/.bin:$PATH\"\n{script}");
        self.cluster
            .shell()?
            .dir(self.clone.path())
            .env("AWS_ENDPOINT_URL", self.moto.url())
            .env("AWS_ACCESS_KEY_ID", "AKIAADMINISTRATOR")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("AWS_DEFAULT_REGION", "eu-west-1")
            .run(&script)
            .await
    }

    fn translate(&self, text: &str) -> String {
        let replace = |text: String, (from, to): &(&str, String)| text.replace(from, to);
        self.table.iter().fold(text.to_owned(), replace)
    }

    fn file(&self, name: &str) -> anyhow::Result<PathBuf> {
        let plain = Path::new(name).components();
        let mut outside = plain.filter(|part| !matches!(part, std::path::Component::Normal(_)));
        ensure!(outside.next().is_none(), "{name} is not in the clone");
        Ok(self.clone.path().join(name))
    }

    fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.file(file)?, self.translate(text))?)
    }

    /// Replaces each group of `-` lines, which the file must contain once, by the `+` lines after
    /// it.
    fn edit(&self, file: &str, diff: &str) -> anyhow::Result<()> {
        let path = self.file(file)?;
        let mut text = fs::read_to_string(&path)?;
        let mut lines = diff.lines().peekable();
        while lines.peek().is_some() {
            let mut run = |sign: char| {
                let mut run = String::new();
                while let Some(line) = lines.next_if(|line| line.starts_with(sign)) {
                    run.push_str(line.get(1..).unwrap_or_default());
                    run.push('\n');
                }
                run
            };
            let (old, new) = (self.translate(&run('-')), self.translate(&run('+')));
            if old.is_empty() {
                bail!("a change begins with what is there: {:?}", lines.peek());
            }
            let found = text.matches(&old).count();
            ensure!(found > 0, "{file} has no lines\n{old}");
            text = text.replace(&old, &new);
        }
        Ok(fs::write(path, text)?)
    }
}

/// Returns an error if a command's result differs from the page.
fn check(command: &Command, ran: &Ran) -> anyhow::Result<()> {
    let both = format!("{}\n{}", ran.stdout, ran.stderr);
    let other = format!("{}\n{}", ran.stderr, ran.stdout);
    let fails = if command.refused { "succeeds" } else { "fails" };
    ensure!(
        ran.status.success() != command.refused,
        "it {fails}, {}:\n{both}",
        ran.status
    );
    if let Some(shown) = &command.shown {
        ensure!(
            [&ran.stdout, &both, &other]
                .iter()
                .any(|printed| is_shown(shown, printed)),
            "it prints\n{both}\nand the page shows\n{shown}"
        );
    }
    Ok(())
}
