//! A further layer of rules in one file: it denies roles outside working hours. It passes through
//! the builder, the decision and the cache like the layers of the product. A test cannot add a
//! variant to [`LayerId`], so it takes the place of the Rego layer.

use super::*;

const NOON: i64 = 12 * 3600;
const NIGHT: i64 = 23 * 3600;

#[derive(Debug)]
struct WorkingHours;

impl Layer for WorkingHours {
    fn id(&self) -> LayerId {
        LayerId::Rego
    }

    fn evaluate(&self, request: &AccessRequest<'_>) -> Verdict {
        match request.now.as_second() / 3600 % 24 {
            8..18 => Verdict::allow("working hours"),
            _ => Verdict::deny("working hours", "roles are available from 8 to 18 o'clock"),
        }
    }

    fn reads_time(&self) -> bool {
        true
    }
}

/// Returns the rules with the grants and the further layer in this mode.
fn rules(mode: Mode) -> RuleSet {
    let mut builder = builder();
    let mut config = config(Mode::Off, Mode::Enforce);
    config.modes[LayerId::Rego] = mode;
    builder.update(is(config));
    builder.set_rego(Some(Arc::new(WorkingHours)));
    assert_eq!(builder.not_synced(), None);
    builder.rule_set()
}

fn decide_at(cache: &DecisionCache, rules: &RuleSet, seconds: i64) -> Decision {
    let now = Timestamp::from_second(seconds).unwrap();
    cache.decide(rules, &pod(Some("reader")), now)
}

#[test]
fn a_further_layer_decides_in_its_mode() {
    let cache = DecisionCache::default();
    for (mode, denies, audits) in [
        (Mode::Enforce, true, false),
        (Mode::Audit, false, true),
        (Mode::Off, false, false),
    ] {
        let night = decide_at(&cache, &rules(mode), NIGHT);
        let (denied, audited) = match night {
            Decision::Deny(denial) => (Some(denial), None),
            Decision::Allow { audited, .. } => (None, audited.into_iter().next()),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            (denied.is_some(), audited.is_some()),
            (denies, audits),
            "{mode:?}"
        );
        for denial in denied.into_iter().chain(audited) {
            assert_eq!(denial.denied_by, LayerId::Rego.into());
            assert_eq!(&*denial.rule, "working hours");
        }
        let noon = decide_at(&cache, &rules(mode), NOON);
        assert!(
            matches!(noon, Decision::Allow { audited, .. } if audited.is_empty()),
            "{mode:?}"
        );
    }
}

#[test]
fn a_further_layer_declares_that_time_changes_it() {
    let (cache, rules) = (DecisionCache::default(), rules(Mode::Enforce));
    let is_allowed = |at| matches!(decide_at(&cache, &rules, at), Decision::Allow { .. });
    assert_eq!([NOON, NIGHT, NOON].map(is_allowed), [true, false, true]);
}

#[test]
fn layers_are_evaluated_in_the_order_of_their_ids() {
    let mut builder = builder();
    let mut config = config(Mode::Audit, Mode::Audit);
    config.modes[LayerId::Rego] = Mode::Audit;
    builder.update(is(config));
    builder.set_rego(Some(Arc::new(WorkingHours)));
    let layers = builder.rule_set().layers;
    let ids: Vec<_> = layers.iter().map(|active| active.layer.id()).collect();
    assert_eq!(ids, LayerId::ALL);
}
