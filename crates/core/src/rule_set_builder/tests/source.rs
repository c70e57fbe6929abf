//! The source of the rules in effect.

use super::*;

#[test]
fn where_rules_come_from_is_said_in_words() {
    let object = RuleSource::RolegateConfig {
        generation: Some(1),
    };
    assert_eq!(RuleSource::Flags.to_string(), "flags");
    assert_eq!(object.to_string(), "RolegateConfig cluster");
    assert_eq!(RuleSource::NotSynced.to_string(), "not known yet");
    for (source, why) in [
        (RuleSource::Missing, "missing"),
        (RuleSource::Invalid, "invalid"),
    ] {
        let said = source.to_string();
        assert!(
            said.contains(why) && said.ends_with("every role is denied"),
            "{said}"
        );
    }
}

#[test]
fn a_broken_object_is_no_source_once_the_good_one_was_deleted() {
    let mut builder = builder();
    assert_eq!(builder.source(), RuleSource::Flags);
    let object = RuleConfig {
        generation: Some(4),
        ..config(Mode::Enforce, Mode::Off)
    };
    let source = RuleSource::RolegateConfig {
        generation: Some(4),
    };
    builder.update(is(object));
    assert_eq!(builder.source(), source);
    let broken = || RuleUpdate::Config(ClusterConfig::Invalid("bad".into()));
    builder.update(broken());
    assert_eq!(builder.source(), source, "the last good one counts");
    builder.update(RuleUpdate::Config(ClusterConfig::Missing));
    assert_eq!(builder.source(), RuleSource::Missing);
    builder.update(broken());
    assert_eq!(builder.source(), RuleSource::Invalid);
}
