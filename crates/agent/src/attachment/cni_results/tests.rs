use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;

/// A result of containerd 1.6 and the bridge plugin 1.1: two address families on one interface.
const DUAL: &str = r#"{
  "kind":"cniCacheV1","containerId":"0f1e","config":"eyJjbmlWZXJzaW9uIjoiMS4wLjAifQ==","ifName":"eth0","networkName":"pods",
  "cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web"],["K8S_POD_INFRA_CONTAINER_ID","0f1e"],["K8S_POD_UID","u1"]],
  "capabilityArgs":{"io.kubernetes.cri.pod-annotations":{"K8S_POD_UID":"u2","result":"{\"ips\":[]}"}},
  "result":{"cniVersion":"1.0.0","dns":{},
    "interfaces":[{"mac":"36:5b:10:2e:05:d6","name":"cni0"},{"mac":"0a:0a:0a:0a:0a:0a","name":"veth1"},{"mac":"02:00:00:00:00:05","name":"eth0","sandbox":"/var/run/netns/cni-1"}],
    "ips":[{"address":"10.2.0.5/16","gateway":"10.2.0.1","interface":2},{"address":"fd02::5/64","interface":2}],
    "routes":[{"dst":"0.0.0.0/0"}]}}"#;

fn pod(uid: &str) -> PodId {
    PodId {
        uid: uid.into(),
        namespace: "shop".into(),
        name: "web".into(),
    }
}

fn v4() -> IpAddr {
    "10.2.0.5".parse().unwrap()
}

fn one(text: &str) -> Recorded {
    let mut all = parse(text.as_bytes());
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn all(texts: &[&str]) -> Records {
    let interfaces: Vec<_> = texts
        .iter()
        .flat_map(|text| parse(text.as_bytes()))
        .map(Arc::new)
        .collect();
    Records::new(&interfaces)
}

/// Returns the network namespace to which the records assign the address, or the reason why they
/// assign it to no namespace.
fn assigned(records: &Records, pod: &PodId, address: IpAddr, existing: &[&str]) -> String {
    match records.assigned(pod, address, |netns| existing.contains(&netns)) {
        Assigned::To(record) => record.netns.clone(),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_result_names_pod_addresses_mac_namespace_and_host_interfaces() {
    let record = one(DUAL);
    assert_eq!(record.netns, "cni-1");
    assert_eq!(record.mac, Some(Mac([2, 0, 0, 0, 0, 5])));
    assert_eq!(*record.host_links, ["cni0", "veth1"]);
    assert_eq!(record.addresses, [v4(), "fd02::5".parse().unwrap()]);
    let records = all(&[DUAL]);
    for address in &record.addresses {
        assert_eq!(assigned(&records, &pod("u1"), *address, &[]), "cni-1");
    }
    let other = "10.2.0.6".parse().unwrap();
    assert_eq!(assigned(&records, &pod("u1"), other, &[]), "Unrecorded");
}

#[test]
fn addresses_belong_to_the_recorded_pod_and_no_namesake() {
    let records = all(&[DUAL]);
    assert_eq!(
        assigned(&records, &pod("u2"), v4(), &["cni-1"]),
        "Unrecorded"
    );
    // A runtime that omits the UID identifies pods by namespace and name.
    let without = DUAL.replace(r#",["K8S_POD_UID","u1"]"#, "");
    let records = all(&[&without]);
    assert_eq!(assigned(&records, &pod("u2"), v4(), &[]), "cni-1");
    for (namespace, name) in [("shop", "db"), ("other", "web")] {
        let other = PodId {
            uid: "u1".into(),
            namespace: namespace.into(),
            name: name.into(),
        };
        assert_eq!(assigned(&records, &other, v4(), &[]), "Unrecorded");
    }
}

#[test]
fn addresses_of_two_existing_namespaces_belong_to_no_pod() {
    let second = DUAL.replace("cni-1", "cni-2").replace("u1", "u2");
    let records = all(&[DUAL, &second]);
    let both = ["cni-1", "cni-2"];
    for uid in ["u1", "u2"] {
        assert_eq!(assigned(&records, &pod(uid), v4(), &both), "Twice");
    }
    // A leftover that the runtime could not clean up is not a claim.
    assert_eq!(assigned(&records, &pod("u2"), v4(), &["cni-2"]), "cni-2");
    assert_eq!(
        assigned(&records, &pod("u1"), v4(), &["cni-2"]),
        "Unrecorded"
    );
    assert_eq!(assigned(&records, &pod("u1"), v4(), &[]), "Unrecorded");
    // The same namespace, recorded again.
    let records = all(&[DUAL, DUAL]);
    assert_eq!(assigned(&records, &pod("u1"), v4(), &["cni-1"]), "cni-1");
}

#[test]
fn records_alone_identify_the_pod_of_an_existing_namespace() {
    let owner = |texts: &[&str], existing: &[&str]| {
        let records = all(texts);
        let owner = records.owner(v4(), |netns| existing.contains(&netns));
        owner.map(|(uid, record)| (uid.to_owned(), record.netns.clone()))
    };
    let first = Some(("u1".to_owned(), "cni-1".to_owned()));
    assert_eq!(owner(&[DUAL], &["cni-1"]), first);
    assert_eq!(owner(&[DUAL, DUAL], &["cni-1"]), first);
    assert_eq!(owner(&[DUAL], &[]), None, "a leftover of a dead pod");
    let second = DUAL.replace("cni-1", "cni-2").replace("u1", "u2");
    let both = ["cni-1", "cni-2"];
    assert_eq!(owner(&[DUAL, &second], &both), None, "two live pods");
    assert_eq!(owner(&[&second, DUAL], &["cni-1"]), first);
    let same_namespace = DUAL.replace("u1", "u2");
    assert_eq!(owner(&[DUAL, &same_namespace], &["cni-1"]), None);
    // A namesake may have followed a pod of which only the name is recorded.
    let unnamed = DUAL.replace(r#",["K8S_POD_UID","u1"]"#, "");
    assert_eq!(owner(&[&unnamed], &["cni-1"]), None);
    // The author of a pod chooses the addresses of its other interfaces.
    let other = DUAL.replace("eth0", "net1");
    assert_eq!(owner(&[&other], &["cni-1"]), None);
    let other = second.replace("eth0", "net1");
    assert_eq!(owner(&[DUAL, &other], &both), None);
    assert!(all(&[DUAL]).has(v4()) && !all(&[]).has(v4()));
}

#[test]
fn added_records_are_those_of_new_or_rewritten_files() {
    let [first, second] = [DUAL, &DUAL.replace("u1", "u2")].map(|text| Arc::new(one(text)));
    let records = |of: &[&Arc<Recorded>]| Records::new(of.iter().copied());
    let earlier = records(&[&first]);
    assert!(earlier.adds_to(&Records::default()));
    assert!(!earlier.adds_to(&earlier) && !Records::default().adds_to(&earlier));
    assert!(records(&[&first, &second]).adds_to(&earlier));
    assert!(records(&[&second]).adds_to(&earlier));
    assert!(!earlier.adds_to(&records(&[&second, &first])));
}

#[test]
fn an_address_without_an_interface_is_on_the_only_one_there_is() {
    let unnumbered = DUAL.replace(r#","interface":2"#, "");
    assert_eq!(one(&unnumbered).addresses.len(), 2);
    let two = unnumbered.replace(
        r#""name":"cni0""#,
        r#""name":"net1","sandbox":"/var/run/netns/cni-1""#,
    );
    assert_eq!(parse(two.as_bytes()), []);
    let numbered = DUAL.replace(
        r#""name":"cni0""#,
        r#""name":"net1","sandbox":"/var/run/netns/cni-1""#,
    );
    assert_eq!(one(&numbered).mac, Some(Mac([2, 0, 0, 0, 0, 5])));
}

#[test]
fn what_is_no_record_of_a_pod_says_nothing() {
    for (text, instead) in [
        ("cniCacheV1", "cniCacheV2"),
        ("K8S_POD_NAMESPACE", "X"),
        (r#"["K8S_POD_NAME","web"]"#, r#"["K8S_POD_NAME",""]"#),
        (
            r#"["IgnoreUnknown","1"]"#,
            r#"["K8S_POD_NAME","db"],["K8S_POD_NAMESPACE","x"]"#,
        ),
        ("10.2.0.5/16\",\"gateway", "10.2.0\",\"gateway"),
        ("/var/run/netns/cni-1\"}", "/var/run/netns/\"}"),
        ("/var/run/netns/cni-1\"}", "/var/run/netns/..\"}"),
        (r#""interface":2},"#, r#""interface":7},"#),
    ] {
        let text = DUAL.replace(text, instead);
        let v4 = parse(text.as_bytes())
            .iter()
            .any(|record| record.addresses.contains(&v4()));
        assert!(!v4, "{instead}");
    }
    for nothing in [
        "",
        "{}",
        "[]",
        "null",
        "{\"kind\":\"cniCacheV1\",\"result\":{}}",
    ] {
        assert_eq!(parse(nothing.as_bytes()), [], "{nothing}");
    }
    // Half of a file that is being written.
    assert_eq!(parse(&DUAL.as_bytes()[..DUAL.len() / 2]), []);
    for (mac, known) in [
        ("02:00:00:00:00:05", true),
        ("02:00:00:00:00", false),
        ("02:00:00:00:00:05:06", false),
        ("02:00:00:00:00:+5", false),
        ("2:00:00:00:00:05", false),
        ("", false),
    ] {
        let text = DUAL.replace("02:00:00:00:00:05", mac);
        assert_eq!(one(&text).mac.is_some(), known, "{mac}");
    }
}

#[test]
fn the_record_of_the_loopback_interface_binds_nothing() {
    let loopback = DUAL
        .replace("10.2.0.5/16", "127.0.0.1/8")
        .replace("fd02::5/64", "::1/128");
    assert_eq!(parse(loopback.as_bytes()), []);
}

#[test]
fn numbers_in_one_record_are_bounded() {
    let ips = |count: usize| {
        let ip = r#"{"address":"10.2.0.5/16","interface":2},"#;
        DUAL.replace(r#""ips":["#, &format!(r#""ips":[{}"#, ip.repeat(count)))
    };
    assert_eq!(one(&ips(MAX_ADDRESSES - 2)).addresses.len(), MAX_ADDRESSES);
    assert_eq!(parse(ips(MAX_ADDRESSES - 1).as_bytes()), []);
    let links = |count: usize| {
        let link = r#"{"name":"x"},"#.repeat(count);
        DUAL.replace(r#"{"mac":"36"#, &format!(r#"{link}{{"mac":"36"#))
            .replace(r#""interface":2"#, &format!(r#""interface":{}"#, count + 2))
    };
    assert_eq!(one(&links(MAX_INTERFACES - 3)).host_links.len(), 63);
    assert_eq!(parse(links(MAX_INTERFACES - 2).as_bytes()), []);
}

fn folder(path: &Path) -> Folder {
    Folder::new(path.to_owned(), fs::metadata(path).unwrap().uid())
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

fn has(folder: &mut Folder, pod: &PodId) -> bool {
    let records = folder.read().unwrap();
    matches!(records.assigned(pod, v4(), |_| true), Assigned::To(_))
}

#[test]
fn a_folder_is_read_again_as_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = folder(dir.path());
    assert!(!has(&mut folder, &pod("u1")));
    let file = dir.path().join("pods-0f1e-eth0");
    write(&file, &DUAL[..DUAL.len() - 1]);
    assert!(!has(&mut folder, &pod("u1")));
    write(&file, DUAL);
    assert!(has(&mut folder, &pod("u1")));
    // An unchanged file keeps its record, so that its bindings stay.
    let record = |folder: &mut Folder| {
        let records = folder.read().unwrap();
        match records.assigned(&pod("u1"), v4(), |_| true) {
            Assigned::To(record) => record,
            other => panic!("{other:?}"),
        }
    };
    let first = record(&mut folder);
    write(&dir.path().join("other"), "{}");
    assert!(Arc::ptr_eq(&first, &record(&mut folder)));
    fs::remove_file(&file).unwrap();
    assert!(!has(&mut folder, &pod("u1")));
}

#[test]
fn only_files_that_only_root_can_write_count() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut folder = folder(dir.path());
    let file = dir.path().join("pods-0f1e-eth0");
    for mode in [0o620, 0o602, 0o666] {
        write(&file, DUAL);
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        assert!(!has(&mut folder, &pod("u1")), "{mode:o}");
    }
    fs::remove_file(&file).unwrap();
    let outside = elsewhere.path().join("file");
    write(&outside, DUAL);
    symlink(&outside, &file).unwrap();
    assert!(!has(&mut folder, &pod("u1")), "a link");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert!(!has(&mut folder, &pod("u1")), "a folder and a pipe");
    fs::remove_dir(&file).unwrap();
    let padding = usize::try_from(folder::MAX_FILE).unwrap() - DUAL.len();
    write(&file, &format!("{DUAL}{}", " ".repeat(padding)));
    assert!(has(&mut folder, &pod("u1")));
    write(&file, &format!("{DUAL}{}", " ".repeat(padding + 1)));
    assert!(!has(&mut folder, &pod("u1")), "too large");
    write(&file, DUAL);
    assert!(has(&mut folder, &pod("u1")));
    let owner = fs::metadata(dir.path()).unwrap().uid();
    let foreign = Folder::new(dir.path().to_owned(), owner + 1).read();
    assert!(matches!(foreign, Err(FolderError::Writable { .. })));
}

#[test]
fn untrusted_or_unreadable_folders_are_errors_and_clear_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results");
    fs::create_dir(&path).unwrap();
    let mut folder = folder(&path);
    write(&path.join("pods-0f1e-eth0"), DUAL);
    for mode in [0o777, 0o720, 0o702] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let error = folder.read().unwrap_err();
        assert!(matches!(error, FolderError::Writable { .. }), "{error}");
        assert!(error.to_string().contains("results"), "{error}");
    }
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    assert!(has(&mut folder, &pod("u1")));
    for number in 0..folder::MAX_FILES {
        fs::write(path.join(number.to_string()), "").unwrap();
    }
    let error = folder.read().unwrap_err();
    assert!(matches!(error, FolderError::Full { .. }), "{error}");
    fs::remove_dir_all(&path).unwrap();
    let error = folder.read().unwrap_err();
    assert!(matches!(error, FolderError::Read { .. }), "{error}");
}
