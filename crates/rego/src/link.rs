//! Relations between the rules of all ConfigMaps: the targets of function calls, the rules that a
//! `deny` reaches, and cycles.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::analysis::{ADMISSION, Call, InputRead, Path, RuleFacts, Shape};
use crate::builtins;
use crate::error::LoadError;
use crate::syntax::ParsedModule;

/// Maximum length of a chain of dependent rules, each of which is a level of recursion.
const MAX_CHAIN: usize = 32;
/// Maximum nesting of a value that rules produce, since comparing, formatting and dropping values
/// is recursive.
const MAX_LEVELS: usize = 1024;

/// All rules by path.
pub(crate) struct Graph<'a> {
    rules: BTreeMap<&'a [String], Vec<Definition<'a>>>,
    modules: Vec<&'a Arc<ParsedModule>>,
}

#[derive(Clone, Copy)]
struct Definition<'a> {
    module: &'a Arc<ParsedModule>,
    rule: &'a RuleFacts,
}

/// The dependencies of a policy's `deny`.
#[derive(Default)]
pub(crate) struct Closure<'a> {
    /// Modules of other ConfigMaps, sorted.
    pub(crate) libraries: BTreeMap<&'a str, &'a Arc<ParsedModule>>,
    pub(crate) inputs: Vec<(&'a str, &'a InputRead)>,
    /// Paths below `data` that are not rules.
    pub(crate) data: BTreeSet<Path>,
    pub(crate) kinds: BTreeSet<&'static str>,
    pub(crate) reads_time: bool,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(modules: impl Iterator<Item = &'a Arc<ParsedModule>>) -> Self {
        let modules: Vec<_> = modules.collect();
        let mut rules: BTreeMap<&[String], Vec<Definition<'_>>> = BTreeMap::new();
        for module in &modules {
            for rule in &module.facts.rules {
                rules
                    .entry(&rule.path)
                    .or_default()
                    .push(Definition { module, rule });
            }
        }
        Self { rules, modules }
    }

    /// Returns the first error of each ConfigMap.
    pub(crate) fn faults(&self) -> BTreeMap<Arc<str>, LoadError> {
        let mut faults = BTreeMap::new();
        for module in &self.modules {
            for rule in &module.facts.rules {
                for call in &rule.calls {
                    if let Err(what) = self.resolve(call) {
                        faults.entry(module.policy.clone()).or_insert_with(|| {
                            LoadError::Compile(format!(
                                "{}, line {}: {what}",
                                module.place, call.line
                            ))
                        });
                    }
                }
            }
        }
        self.assumed_variables(&mut faults);
        self.replaced_elsewhere(&mut faults);
        self.shapes(&mut faults);
        self.general_heads(&mut faults);
        self.scattered_functions(&mut faults);
        self.cycles(&mut faults);
        if faults.is_empty() {
            self.depth_errors(&mut faults);
        }
        faults
    }

    /// Returns the number of arguments if a call is of a user-defined function.
    fn is_function(&self, call: &Call) -> Option<usize> {
        self.rules
            .get(call.path.as_slice())?
            .iter()
            .find_map(|definition| match definition.rule.shape {
                Shape::Function(arguments) => Some(arguments),
                Shape::Set | Shape::Complete => None,
            })
    }

    /// Returns true if a `with` replaces a function of that name.
    fn is_replaced(&self, name: &str) -> bool {
        let mut modules = self.modules.iter();
        modules.any(|module| module.facts.replaced.contains(name))
    }

    fn resolve(&self, call: &Call) -> Result<(), String> {
        let name = &call.name;
        let (wanted, with_result) = match self.is_function(call) {
            Some(wanted) => (wanted, true),
            None => match builtins::arguments(name) {
                Some(builtins::Arguments::Any) => return Ok(()),
                Some(builtins::Arguments::Fixed(count)) => (count, true),
                // Outside the scope of the `with` that replaces it, a call fails at evaluation.
                None if builtins::missing(name).is_some() && self.is_replaced(name) => {
                    return Ok(());
                }
                None => {
                    return Err(match builtins::missing(name) {
                        Some(why) => format!("the built-in {name} is not supported: {why}"),
                        None => format!(
                            "function {name} is not defined: define it, or load the ConfigMap \
                             that does"
                        ),
                    });
                }
            },
        };
        if let Some(pattern) = &call.pattern
            && self.is_function(call).is_none()
        {
            builtins::check_pattern(name, pattern)?;
        }
        if call.arguments == wanted || (with_result && call.arguments == wanted + 1) {
            Ok(())
        } else {
            Err(format!(
                "{name} takes {wanted} arguments, not {}",
                call.arguments
            ))
        }
    }

    /// A negated expression can read a rule of another module only if lowering can tell that the
    /// name is not a variable.
    fn assumed_variables(&self, faults: &mut BTreeMap<Arc<str>, LoadError>) {
        for module in &self.modules {
            for (name, line) in &module.assumed {
                let path: Path = module.facts.package.iter().chain([name]).cloned().collect();
                let Some(other) = self
                    .rules
                    .get(path.as_slice())
                    .and_then(|rules| rules.first())
                else {
                    continue;
                };
                faults.entry(module.policy.clone()).or_insert_with(|| {
                    LoadError::Compile(format!(
                        "{}, line {line}: {name} could be a variable or the rule in {}: write \
                         data.{} for the rule, or declare the variable with some",
                        module.place,
                        other.module.place,
                        path.join(".")
                    ))
                });
            }
        }
    }

    /// A built-in that the interpreter does not have is replaced only in the module of its `with`.
    fn replaced_elsewhere(&self, faults: &mut BTreeMap<Arc<str>, LoadError>) {
        for module in &self.modules {
            for name in &module.facts.replaced {
                let others = self
                    .modules
                    .iter()
                    .filter(|other| other.place != module.place);
                let calls = others
                    .flat_map(|other| &other.facts.rules)
                    .flat_map(|rule| &rule.calls);
                if calls.into_iter().any(|call| call.name == *name) {
                    faults.entry(module.policy.clone()).or_insert_with(|| {
                        LoadError::Compile(format!(
                            "{}: with replaces {name}, which another module calls: move both \
                             into one module",
                            module.place
                        ))
                    });
                }
            }
        }
    }

    /// Rejects a name that is a set in one module and a value in another.
    fn shapes(&self, faults: &mut BTreeMap<Arc<str>, LoadError>) {
        for (path, definitions) in &self.rules {
            let Some(first) = definitions.first() else {
                continue;
            };
            for other in definitions
                .iter()
                .filter(|other| other.rule.shape != first.rule.shape)
            {
                for (one, another) in [(first, other), (other, first)] {
                    faults.entry(one.module.policy.clone()).or_insert_with(|| {
                        LoadError::Compile(format!(
                            "{}, line {}: data.{} has another kind in {}: a name must be one \
                             set, value or function",
                            one.module.place,
                            one.rule.line,
                            path.join("."),
                            another.module.place
                        ))
                    });
                }
            }
        }
    }

    /// Rejects references that the interpreter reads differently: if `p.b.q` is a rule, it does not
    /// evaluate `p[x].q` for it, and if `p.b[y]` is one, `p[x]` includes `b` even without values.
    fn general_heads(&self, faults: &mut BTreeMap<Arc<str>, LoadError>) {
        for (path, definitions) in &self.rules {
            let by_key = |one: &&Definition<'_>| one.rule.shape == Shape::Set;
            let Some(general) = definitions.iter().find(by_key) else {
                continue;
            };
            let is_general = definitions.iter().any(|one| one.rule.is_general);
            // Only single values are safe below `p[x]`: another set or object would be present but
            // empty.
            let mut below = self
                .meant(path)
                .filter(|(other, _)| other.len() > path.len())
                .flat_map(|(_, definitions)| definitions);
            let Some(other) = below.find(|other| is_general || by_key(other)) else {
                continue;
            };
            for (one, another) in [(general, other), (other, general)] {
                faults.entry(one.module.policy.clone()).or_insert_with(|| {
                    LoadError::Compile(format!(
                        "{}, line {}: data.{} has a variable as its key, and data.{} is also a \
                         rule ({}): rename one, or move both into one module",
                        one.module.place,
                        one.rule.line,
                        path.join("."),
                        other.rule.path.join("."),
                        another.module.place
                    ))
                });
            }
        }
    }

    /// The interpreter evaluates every body of a function as if it were in the module of the first
    /// one.
    fn scattered_functions(&self, faults: &mut BTreeMap<Arc<str>, LoadError>) {
        for (path, definitions) in &self.rules {
            let Some(first) = definitions.first() else {
                continue;
            };
            let is_function = matches!(first.rule.shape, Shape::Function(_));
            let elsewhere = |other: &&Definition<'_>| other.module.place != first.module.place;
            for other in definitions.iter().filter(|_| is_function).filter(elsewhere) {
                for (one, another) in [(first, other), (other, first)] {
                    faults.entry(one.module.policy.clone()).or_insert_with(|| {
                        LoadError::Compile(format!(
                            "{}, line {}: function data.{} is also in {}: move all of its bodies \
                             into one module",
                            one.module.place,
                            one.rule.line,
                            path.join("."),
                            another.module.place
                        ))
                    });
                }
            }
        }
    }

    /// Returns the rules that a reference may denote: those above its path and those below it.
    fn meant(&self, path: &[String]) -> impl Iterator<Item = (&'a [String], &[Definition<'a>])> {
        let above = (1..=path.len())
            .filter_map(|length| path.get(..length))
            .filter_map(|start| self.rules.get_key_value(start));
        let below = self
            .rules
            .range::<[String], _>((std::ops::Bound::Excluded(path), std::ops::Bound::Unbounded))
            .take_while({
                let path = path.to_vec();
                move |(rule, _)| rule.starts_with(&path)
            });
        above
            .chain(below)
            .map(|(path, definitions)| (*path, definitions.as_slice()))
    }

    /// Returns the rules on which a rule depends.
    fn needs(&self, rule: &'a RuleFacts) -> Vec<&'a [String]> {
        let mut needs: Vec<&[String]> = rule
            .refs
            .iter()
            .flat_map(|reference| self.meant(&reference.path).map(|(path, _)| path))
            .collect();
        needs.extend(
            rule.calls
                .iter()
                .filter(|call| self.is_function(call).is_some())
                .filter_map(|call| {
                    self.rules
                        .get_key_value(call.path.as_slice())
                        .map(|(path, _)| *path)
                }),
        );
        needs
    }

    /// Rejects recursion, and long chains of rules, since each rule in a chain is a call on the
    /// stack.
    fn cycles(&self, faults: &mut BTreeMap<Arc<str>, LoadError>) {
        let mut known: BTreeMap<&[String], usize> = BTreeMap::new();
        for path in self.rules.keys() {
            let mut chain = Vec::new();
            if let Err(what) = self.depth(path, &mut chain, &mut known) {
                for at in chain {
                    for definition in self.rules.get(at).into_iter().flatten() {
                        faults
                            .entry(definition.module.policy.clone())
                            .or_insert_with(|| {
                                LoadError::Compile(format!(
                                    "{}, line {}: {what}",
                                    definition.module.place, definition.rule.line
                                ))
                            });
                    }
                }
            }
        }
    }

    fn depth(
        &self,
        path: &'a [String],
        chain: &mut Vec<&'a [String]>,
        known: &mut BTreeMap<&'a [String], usize>,
    ) -> Result<usize, String> {
        if let Some(depth) = known.get(path) {
            return Ok(*depth);
        }
        if chain.contains(&path) {
            return Err(format!(
                "data.{} depends on itself: Rego does not support recursion",
                path.join(".")
            ));
        }
        chain.push(path);
        let too_long = || format!("more than {MAX_CHAIN} rules depend on each other in a chain");
        if chain.len() > MAX_CHAIN {
            return Err(too_long());
        }
        let mut depth = 0;
        for definition in self.rules.get(path).into_iter().flatten() {
            for need in self.needs(definition.rule) {
                depth = depth.max(self.depth(need, chain, known)?);
            }
        }
        // A rule that was visited before may itself have a long chain.
        if depth + chain.len() > MAX_CHAIN {
            return Err(too_long());
        }
        chain.pop();
        known.insert(path, depth + 1);
        Ok(depth + 1)
    }

    /// Rejects values that rules could nest too deeply, step by step: `y := [x]`, `z := [y]`, and
    /// so on through function calls.
    fn depth_errors(&self, faults: &mut BTreeMap<Arc<str>, LoadError>) {
        let mut known = BTreeMap::new();
        for (path, definitions) in &self.rules {
            if self.levels(path, &mut known) <= MAX_LEVELS {
                continue;
            }
            for Definition { module, rule } in definitions {
                faults.entry(module.policy.clone()).or_insert_with(|| {
                    LoadError::Compile(format!(
                        "{}, line {}: values of data.{} could be nested more than {MAX_LEVELS} \
                         levels deep",
                        module.place,
                        rule.line,
                        path.join(".")
                    ))
                });
            }
        }
    }

    /// Returns the number of levels by which a rule may nest its inputs.
    fn levels(&self, path: &'a [String], known: &mut BTreeMap<&'a [String], usize>) -> usize {
        if let Some(levels) = known.get(path) {
            return *levels;
        }
        // Cycles are rejected elsewhere; this entry only ends the recursion.
        known.insert(path, 0);
        let mut most = 0;
        for Definition { rule, .. } in self.rules.get(path).into_iter().flatten() {
            // A document of rules also has the levels of their paths.
            let read = rule
                .refs
                .iter()
                .flat_map(|reference| self.meant(&reference.path))
                .map(|(read, _)| self.levels(read, known) + read.len())
                .max()
                .unwrap_or(0);
            let called = rule
                .calls
                .iter()
                .filter_map(|call| self.rules.get_key_value(call.path.as_slice()))
                .map(|(function, _)| self.levels(function, known))
                .fold(0usize, usize::saturating_add);
            most = most.max(rule.levels.saturating_add(read).saturating_add(called));
        }
        known.insert(path, most);
        most
    }

    /// Returns the dependencies of a ConfigMap's `deny`.
    pub(crate) fn closure(&self, policy: &str) -> Closure<'a> {
        let mut closure = Closure::default();
        let mut seen: BTreeSet<&[String]> = BTreeSet::new();
        let mut queue: VecDeque<Definition<'a>> = VecDeque::new();
        for definitions in self
            .rules
            .iter()
            .filter(|(path, _)| is_deny(path))
            .map(|(_, rules)| rules)
        {
            queue.extend(
                definitions
                    .iter()
                    .filter(|definition| &*definition.module.policy == policy),
            );
        }
        while let Some(Definition { module, rule }) = queue.pop_front() {
            if &*module.policy != policy {
                closure.libraries.insert(&module.place, module);
            }
            closure
                .inputs
                .extend(rule.inputs.iter().map(|read| (module.place.as_str(), read)));
            closure.kinds.extend(&rule.kinds);
            closure.reads_time |= rule
                .calls
                .iter()
                .any(|call| call.name == builtins::NOW && self.is_function(call).is_none());
            for reference in rule.refs.iter().filter(|reference| reference.is_data) {
                let is_rule = (1..=reference.path.len())
                    .filter_map(|length| reference.path.get(..length))
                    .any(|start| self.rules.contains_key(start));
                if !is_rule {
                    closure.data.insert(reference.path.clone());
                }
            }
            for need in self.needs(rule) {
                if seen.insert(need) && !is_deny(need) {
                    queue.extend(self.rules.get(need).into_iter().flatten());
                }
            }
        }
        closure
    }
}

/// Returns true if a path is that of the admission package's `deny`, or below it.
pub(crate) fn is_deny(path: &[String]) -> bool {
    path.len() > ADMISSION.len()
        && path.iter().zip(ADMISSION).all(|(one, other)| one == other)
        && path.get(ADMISSION.len()).is_some_and(|name| name == "deny")
}
