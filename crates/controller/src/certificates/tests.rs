//! Issued certificates can be parsed, and plans follow from them.

use jiff::{SignedDuration, Timestamp};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn start() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

fn names() -> Vec<String> {
    let options = SelfSigned {
        extra_names: vec!["127.0.0.1".into()],
        ..SelfSigned::new("rolegate-system")
    };
    options.names()
}

fn made(now: Timestamp) -> (Issued, Found) {
    let issued = issue(now, 90 * DAY, "test", &names()).unwrap();
    let found = found(&issued, &issued.authority, now);
    (issued, found)
}

fn found(issued: &Issued, authorities: &str, now: Timestamp) -> Found {
    let (certificate, key) = (issued.certificate.as_bytes(), issued.key.as_bytes());
    Found::read(certificate, key, authorities.as_bytes(), now)
}

fn after(days: i64) -> Timestamp {
    start() + SignedDuration::from_hours(24 * days)
}

#[test]
fn a_new_pair_is_kept_for_two_thirds_of_its_life() {
    let (issued, new) = made(start());
    let Found::Works(current) = &new else {
        panic!("{new:?}")
    };
    assert_eq!(current.not_after, after(90));
    assert_eq!(current.not_before, start() - SignedDuration::from_hours(1));
    for name in [
        "rolegate-admission.rolegate-system.svc",
        "rolegate-admission.rolegate-system.svc.cluster.local",
        "127.0.0.1",
    ] {
        assert!(current.names.contains(name), "{name}");
    }
    let Action::Keep { until } = plan(start(), &new, &names()) else {
        panic!("it is kept")
    };
    assert!(until > after(59) && until < after(61), "{until}");
    let just_before = until - SignedDuration::from_secs(1);
    assert_eq!(plan(just_before, &new, &names()), Action::Keep { until });
    assert_eq!(plan(until, &new, &names()), Action::Issue(Why::Due));
    assert!(!Why::Due.is_urgent());
    // The authority's key is not included.
    assert_eq!(issued.key.matches("PRIVATE KEY").count(), 2);
    assert!(!issued.authority.contains("PRIVATE KEY"));
    assert!(!issued.certificate.contains("PRIVATE KEY"));
    assert!(!format!("{issued:?}").contains("BEGIN"));
}

#[test]
fn unusable_pairs_are_replaced_at_once() {
    let (issued, _) = made(start());
    let (other, _) = made(after(1));
    let now = after(1);
    let read = |certificate: &str, key: &str, authorities: &str| {
        Found::read(
            certificate.as_bytes(),
            key.as_bytes(),
            authorities.as_bytes(),
            now,
        )
    };
    let (certificate, key) = (&*issued.certificate, issued.key.as_str());
    for (name, state) in [
        ("nothing", read("", "", "")),
        ("no key", read(certificate, "", &issued.authority)),
        (
            "other key",
            read(certificate, &other.key, &issued.authority),
        ),
        ("nonsense", read("nonsense", key, &issued.authority)),
        ("no authority", read(certificate, key, "")),
        ("other authority", read(certificate, key, &other.authority)),
        ("ended", found(&issued, &issued.authority, after(91))),
        ("early", found(&other, &other.authority, start())),
    ] {
        let Action::Issue(why) = plan(now, &state, &names()) else {
            panic!("{name} is kept")
        };
        assert!(why.is_urgent(), "{name}: {why:?}");
    }
    let works = read(certificate, key, &issued.authority);
    let more = [names(), vec!["more.example".into()]].concat();
    assert_eq!(plan(now, &works, &more), Action::Issue(Why::Names));
    assert!(!Why::Names.is_urgent(), "other names are still served");
    let fewer = &names()[..1];
    assert!(matches!(plan(now, &works, fewer), Action::Keep { .. }));
}

#[test]
fn authorities_are_trusted_until_they_end_and_are_not_too_many() {
    let (first, _) = made(start());
    let (second, _) = made(after(60));
    let one = Authorities::read(first.authority.as_bytes(), start());
    assert_eq!(one.to_pem(), first.authority);
    let both = one.with(&second.authority, second.not_after);
    let text = format!("{}{}", second.authority, first.authority);
    assert_eq!(both.to_pem(), text, "the latest first");
    assert_eq!(both.with(&second.authority, second.not_after), both);
    assert_eq!(Authorities::read(text.as_bytes(), after(60)), both);
    let later = Authorities::read(text.as_bytes(), after(91));
    assert_eq!(
        later.to_pem(),
        second.authority,
        "the first authority has expired"
    );

    let noise = format!(
        "# a comment\r\n{text}garbage\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    );
    assert_eq!(Authorities::read(noise.as_bytes(), after(60)), both);
    assert!(Authorities::read(b"\xff", start()).is_empty());
    let many = text.repeat(20);
    assert_eq!(Authorities::read(many.as_bytes(), after(60)).len(), 4);
    let third = both
        .with("3", after(99))
        .with("4", after(99))
        .with("5", after(99));
    assert_eq!(third.len(), 4);
    assert!(third.to_pem().starts_with("543"));
}

#[test]
fn a_short_life_is_not_due_at_once() {
    let lifetime = Duration::from_secs(30);
    let issued = issue(start(), lifetime, "test", &names()).unwrap();
    let new = found(&issued, &issued.authority, start());
    let Action::Keep { until } = plan(start(), &new, &names()) else {
        panic!("it is kept")
    };
    assert!(until >= start() + SignedDuration::from_secs(15), "{until}");
}

#[test]
fn an_invalid_name_is_an_error() {
    assert!(issue(start(), DAY, "test", &["é".into()]).is_err());
}
