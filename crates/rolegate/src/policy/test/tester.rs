//! Runs tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use jiff::Timestamp;
use rolegate_api::manifest::Document;
use rolegate_core::text::plain;
use rolegate_inventory::files::{Contents, Modules, Selection};
use rolegate_inventory::ignore::Ignore;
use rolegate_inventory::in_force::FlagSources;
use rolegate_inventory::load::{Assumed, Loaded};
use rolegate_inventory::object::{is_core, is_rule};
use rolegate_inventory::objects::Objects;
use rolegate_policy::check::namespace_of;
use rolegate_policy::suite::{Objects as Subject, Observer, PolicyTest, Subjects, TestReport};
use rolegate_rego::{RegoResult, RegoTest};
use rolegate_report::cases::{Case, CaseResult, Cases, FailureReason, Suite};
use serde_json::{Value, json};

use super::super::current::load;
use super::super::files;
use super::TestArguments;
use super::file::TestFile;
use crate::output;

/// Runs tests and collects their results.
pub(super) struct Tester<'a> {
    arguments: &'a TestArguments,
    sources: &'a FlagSources,
    /// The files of tests.
    pub(super) tests: Vec<TestFile>,
    /// Rules in the test directories, including tests in Rego.
    contents: Contents,
    observer: Observer,
    /// The results so far.
    pub(super) report: TestReport,
    notes: BTreeSet<String>,
    /// Flags without effect, for each set of rules.
    pub(super) idle: Vec<Vec<(String, &'static str)>>,
    now: Timestamp,
}

impl<'a> Tester<'a> {
    /// Reads tests and rules.
    ///
    /// # Errors
    /// Returns an error for unreadable files.
    pub(super) fn read(
        arguments: &'a TestArguments,
        sources: &'a FlagSources,
    ) -> anyhow::Result<Self> {
        let ignore = Ignore::of(arguments.ignore.clone());
        let mut contents = files::read(
            &arguments.paths,
            Selection {
                ignore: ignore.as_ref(),
                modules: Modules::All,
                ..Selection::default()
            },
        )?;
        let mut tests = Vec::new();
        for one in &contents.manifests {
            let found = one
                .documents
                .iter()
                .filter(|one| PolicyTest::is_one(&one.value));
            for document in found {
                let file = one.file.clone();
                let test = PolicyTest::read(document)
                    .map_err(|error| anyhow!("{}:{}: {error}", plain(&file), error.line))?;
                tests.push(TestFile { file, test });
            }
        }
        let subjects: BTreeSet<PathBuf> = tests.iter().flat_map(TestFile::subjects).collect();
        contents.manifests.retain(|one| {
            let path = Path::new(&one.file).canonicalize();
            path.map_or(true, |path| !subjects.contains(&path))
        });
        for one in &mut contents.manifests {
            let makes_rules = |value: &Value| is_rule(value) || is_core(value, "Namespace");
            one.documents
                .retain(|document| makes_rules(&document.value));
        }
        Ok(Self {
            arguments,
            sources,
            tests,
            contents,
            observer: Observer::default(),
            report: TestReport {
                cases: Cases {
                    title: "rolegate policy test",
                    suites: Vec::new(),
                },
                ..TestReport::default()
            },
            notes: BTreeSet::new(),
            idle: Vec::new(),
            now: Timestamp::now(),
        })
    }

    fn is_wanted(&self, name: &str) -> bool {
        let run = self.arguments.run.as_ref();
        run.is_none_or(|run| run.is_match(name))
    }

    /// Collects notes about rules, each once.
    fn note(&mut self, loaded: &Loaded) {
        self.idle.push(loaded.idle.clone());
        for note in &loaded.notes {
            if self.notes.insert(note.clone()) {
                output::note(note);
            }
        }
    }

    fn load(&self, rules: &Objects) -> anyhow::Result<Loaded> {
        load(rules, self.sources, &Assumed::default())
    }

    /// Returns the rules of a test file.
    fn rules(&self, file: &TestFile) -> anyhow::Result<Objects> {
        let of = |paths: &[PathBuf]| files::objects(paths);
        match &file.test.rules {
            Some(paths) => {
                let paths: Vec<_> = paths.iter().map(|path| file.resolved(path)).collect();
                of(&paths)
            }
            None if !self.arguments.rules.is_empty() => of(&self.arguments.rules),
            None => Ok(Objects::of_contents(self.contents.policies())),
        }
    }

    /// Runs the cases of a file.
    ///
    /// # Errors
    /// Returns an error for unreadable files and unusable rules.
    pub(super) fn run_file(&mut self, file: &TestFile) -> anyhow::Result<()> {
        let cases = file.test.cases.iter();
        let wanted: Vec<_> = cases.filter(|case| self.is_wanted(&case.name)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let mut read: BTreeMap<&str, Vec<Document>> = BTreeMap::new();
        for case in &wanted {
            for subject in [Some(&case.objects), case.old.as_ref()]
                .into_iter()
                .flatten()
            {
                if let Subject::File(path) = subject {
                    let place = || format!("{}:{}", plain(&file.file), case.line);
                    let selection = Selection {
                        requires_objects: true,
                        ..Selection::default()
                    };
                    let found = files::read(&[file.resolved(path)], selection)
                        .map_err(|error| error.context(place()))?;
                    let documents = found.manifests.into_iter();
                    read.insert(path, documents.flat_map(|one| one.documents).collect());
                }
            }
        }
        let documents = |subject: Option<&'_ Subject>| -> Vec<Document> {
            match subject {
                None => Vec::new(),
                Some(Subject::Here(documents)) => documents.clone(),
                Some(Subject::File(path)) => read.get(path.as_str()).cloned().unwrap_or_default(),
            }
        };
        let cases: Vec<_> = wanted
            .iter()
            .map(|case| {
                let objects = documents(Some(&case.objects));
                (*case, objects, documents(case.old.as_ref()))
            })
            .collect();
        let mentioned = cases.iter().flat_map(|(case, objects, _)| {
            let objects = objects.iter().map(|one| &one.value);
            objects.map(|value| namespace_of(value, &case.namespace))
        });
        let rules = self.rules(file)?;
        // An error in the rules is reported with its line.
        self.load(&rules)?;
        let rules = rules.overlaid(&missing_namespaces(&rules, mentioned), false);
        let loaded = self.load(&rules)?;
        refuse_unusable(&loaded)?;
        self.note(&loaded);
        let observed = self.observer.observed(&loaded.snapshot.admission);
        let policies = loaded.snapshot.policies.observed(&self.observer.lines);
        let mut webhook = loaded.validation_rules();
        webhook.rules = &observed;
        webhook.policies = Some(&policies);
        let shown = |text: &str| loaded.names.in_sentence(text);
        let results = cases.iter().map(|(case, objects, old)| {
            let subjects = Subjects { objects, old };
            Case {
                name: case.name.clone(),
                file: file.file.clone(),
                line: case.line,
                result: case.run(&webhook, subjects, shown, self.now),
                remarks: Vec::new(),
            }
        });
        let suite = Suite {
            name: file.test.name.clone(),
            cases: results.collect(),
        };
        self.report.cases.suites.push(suite);
        self.cover(&loaded);
        Ok(())
    }

    /// Runs the tests in Rego with all rules.
    ///
    /// # Errors
    /// Returns an error for unreadable files and unusable rules.
    pub(super) fn run_rego(&mut self) -> anyhow::Result<()> {
        let mut all = self.contents.all();
        if !self.arguments.rules.is_empty() {
            let selection = Selection {
                modules: Modules::All,
                ..Selection::default()
            };
            let more = files::read(&self.arguments.rules, selection)?;
            all.add(more);
        }
        let loaded = self.load(&Objects::of_contents(all))?;
        refuse_unusable(&loaded)?;
        let tests = loaded
            .writer
            .policies()
            .run_tests(self.now, &self.observer.lines, |name| self.is_wanted(name))
            .map_err(|error| anyhow!("{}", loaded.names.in_sentence(&error.to_string())))?;
        let mut suites: BTreeMap<String, Vec<Case>> = BTreeMap::new();
        for test in tests {
            let file = loaded.names.module(&test.policy, &test.entry);
            let case = rego_case(&test, file.clone());
            suites.entry(file).or_default().push(case);
        }
        let is_rego = !suites.is_empty();
        let suites = suites
            .into_iter()
            .map(|(name, cases)| Suite { name, cases });
        self.report.cases.suites.extend(suites);
        if is_rego {
            self.note(&loaded);
            self.cover(&loaded);
        }
        Ok(())
    }

    fn cover(&mut self, loaded: &Loaded) {
        let lines = loaded.writer.policies().coverage(&self.observer.lines);
        for (policy, entry, lines) in lines {
            let name = loaded.names.module(&policy, &entry);
            self.report.covered.add_module(&name, &lines);
        }
        for grant in &loaded.grants {
            let is_used = self.observer.has_allowed(&grant.name);
            self.report.covered.add_grant(&grant.name, is_used);
        }
    }
}

/// Rejects rules with unusable policies: their tests would be missing, and a test that expects a
/// denial could pass without them.
fn refuse_unusable(loaded: &Loaded) -> anyhow::Result<()> {
    let unusable = loaded.names.unusable(&loaded.writer);
    if unusable.is_empty() {
        Ok(())
    } else {
        bail!("{}", unusable.join("\n"))
    }
}

/// Returns the namespaces that objects are in but rules do not describe, without annotations.
fn missing_namespaces<'a>(rules: &Objects, mentioned: impl Iterator<Item = &'a str>) -> Objects {
    let described: BTreeSet<_> = rules
        .values()
        .iter()
        .filter(|value| is_core(value, "Namespace"))
        .filter_map(|value| value.pointer("/metadata/name")?.as_str())
        .collect();
    let missing: BTreeSet<_> = mentioned.filter(|name| !described.contains(name)).collect();
    let made = missing.into_iter().map(|name| {
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name},
        })
    });
    Objects::of_values(made.collect())
}

fn rego_case(test: &RegoTest, file: String) -> Case {
    Case {
        name: test.name.clone(),
        file,
        line: test.line.into(),
        result: match &test.result {
            RegoResult::Passed => CaseResult::Passed,
            RegoResult::Failed => CaseResult::Failed(vec![FailureReason {
                kind: "rego".into(),
                message: format!("{} is not true", test.name),
            }]),
            RegoResult::Skipped => CaseResult::Skipped("its name begins with todo_".into()),
            RegoResult::Errored(why) => CaseResult::Errored(why.clone()),
        },
        remarks: Vec::new(),
    }
}
