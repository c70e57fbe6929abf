//! Runs OPA's test cases through rolegate's engine and compares the results.
//!
//! Intended differences are listed in `deviations.v0.yaml` and `deviations.v1.yaml` with their
//! reasons. An unlisted case that differs fails the test, and so does a listed one that no longer
//! differs. The figures are in `docs/reference/rego.md`.
//!
//! `ROLEGATE_CONFORMANCE=write` updates both lists and the figures. New entries get the engine's
//! message as their reason, to be edited manually.
#![cfg(test)]

mod deviations;
mod families;
mod figures;
mod suite;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rolegate_rego::Syntax;

use deviations::{Deviations, Found};
use figures::Figures;
use suite::Verdict;

#[global_allocator]
static ALLOCATOR: rolegate_rego::CountingAllocator = rolegate_rego::counting_allocator();

/// Runs all cases of a version on all processors.
fn run(version: Syntax) -> (Figures, BTreeMap<String, Found>) {
    let cases = suite::cases(version);
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            // Some cases have deeply nested values, and each level is one of recursion.
            let worker = std::thread::Builder::new().stack_size(64 << 20);
            let work = || {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = case.run();
                    results.lock().push((case, result));
                }
            };
            worker.spawn_scoped(scope, work).unwrap();
        }
    });
    let (mut figures, mut found) = (Figures::default(), BTreeMap::new());
    for (case, (verdict, what)) in results.into_inner() {
        figures.count(families::of(&case.folder), &verdict);
        if verdict != Verdict::Same {
            found.insert(case.key.clone(), Found { verdict, what });
        }
    }
    (figures, found)
}

#[test]
fn opas_cases_get_opas_answers() {
    let writes = std::env::var_os("ROLEGATE_CONFORMANCE").is_some_and(|value| value == "write");
    let (mut problems, mut all) = (Vec::new(), Vec::new());
    for version in [Syntax::V0, Syntax::V1] {
        let (figures, found) = run(version);
        let accepted = Deviations::read(version);
        if writes {
            accepted.renewed(&found).write(version);
        } else {
            problems.extend(accepted.compare(version, &found));
        }
        all.push(figures);
    }
    let table = figures::table(&all[0], &all[1]);
    println!("{table}");
    if writes {
        figures::write(&table);
    } else if !figures::is_written(&table) {
        problems.push("docs/reference/rego.md has other figures".into());
    }
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
}
