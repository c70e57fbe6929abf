use std::fs;

use super::*;

/// Returns the result for a directory with these CNI configurations and no pods.
async fn detected(files: &[(&str, &str)]) -> Result<Detected, DetectError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let detector = Detector {
        conf_dir: dir.path().to_owned(),
        netns_dir: dir.path().join("netns"),
    };
    detector.detect().await
}

#[tokio::test]
async fn known_plugins_name_their_interfaces() {
    for (config, expected) in [
        (
            r#"{"plugins":[{"type":"aws-cni","vethPrefix":"eni"},{"type":"egress-cni"}]}"#,
            "eni+",
        ),
        (
            r#"{"plugins":[{"type":"aws-cni","vethPrefix":"pod"}]}"#,
            "pod+",
        ),
        (
            r#"{"plugins":[{"type":"calico"},{"type":"portmap"}]}"#,
            "cali+",
        ),
        (r#"{"plugins":[{"type":"cilium-cni"}]}"#, "lxc+"),
        (r#"{"type":"bridge","bridge":"kube-bridge"}"#, "kube-bridge"),
        (r#"{"type":"bridge"}"#, "cni0"),
        (r#"{"plugins":[{"type":"ptp"}]}"#, "veth+"),
        (
            r#"{"plugins":[{"type":"flannel","delegate":{"hairpinMode":true}}]}"#,
            "cni0",
        ),
        (r#"{"type":"flannel","delegate":{"bridge":"br1"}}"#, "br1"),
        (
            r#"{"type":"multus","delegates":[{"type":"calico"}]}"#,
            "cali+",
        ),
        (
            r#"{"type":"multus","delegates":[{"plugins":[{"type":"bridge"}]}]}"#,
            "cni0",
        ),
    ] {
        let found = detected(&[("10-net.conflist", config)]).await.unwrap();
        assert_eq!(found.interface.to_string(), expected, "{config}");
        assert!(found.source.contains("10-net.conflist"), "{found:?}");
    }
}

#[tokio::test]
async fn the_first_configuration_counts() {
    let calico = ("10-calico.conflist", r#"{"plugins":[{"type":"calico"}]}"#);
    let bridge = ("20-bridge.conf", r#"{"type":"bridge"}"#);
    let old = ("05-old.conflist.bak", r#"{"type":"bridge"}"#);
    let found = detected(&[bridge, calico, old]).await.unwrap();
    assert_eq!(found.interface.to_string(), "cali+");
    // A thick Multus refers to the cluster's network, which is the next file.
    let multus = ("00-multus.conf", r#"{"type":"multus-shim"}"#);
    let found = detected(&[bridge, calico, multus]).await.unwrap();
    assert_eq!(found.interface.to_string(), "cali+");
}

#[tokio::test]
async fn unknown_networks_are_refused_with_advice() {
    for (config, reason) in [
        (r#"{"plugins":[{"type":"acme-net"}]}"#, "\"acme-net\""),
        (r#"{"type":"macvlan"}"#, "bypass the node's network"),
        (
            r#"{"type":"bridge","bridge":"no such bridge"}"#,
            "no such bridge",
        ),
        (r#"{"type":"multus-shim"}"#, "another configuration"),
        (
            r#"{"type":"multus","delegates":[{"type":"multus"}]}"#,
            "another configuration",
        ),
        ("{}", "not a CNI configuration"),
        ("not JSON", "not a CNI configuration"),
        (r#"{"plugins":[]}"#, "not a CNI configuration"),
    ] {
        let error = detected(&[("10-net.conf", config)]).await.unwrap_err();
        assert!(matches!(error, DetectError::Unknown { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(reason) && text.contains("--host-interface"),
            "{text}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_configuration_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let detector = Detector {
        conf_dir: dir.path().join("net.d"),
        netns_dir: dir.path().join("netns"),
    };
    let error = detector.wait(Duration::from_secs(30)).await.unwrap_err();
    assert!(error.to_string().contains("--cni-conf-dir"), "{error}");
    let installed = async {
        sleep(Duration::from_secs(10)).await;
        fs::create_dir(&detector.conf_dir).unwrap();
        fs::write(detector.conf_dir.join("10.conf"), r#"{"type":"calico"}"#).unwrap();
    };
    let (found, ()) = tokio::join!(detector.wait(Duration::from_secs(30)), installed);
    assert_eq!(found.unwrap().interface.to_string(), "cali+");
}

#[test]
fn pods_interfaces_have_a_known_name_in_common() {
    for (names, expected) in [
        ("eni1 eni2", Some("eni+")),
        ("cali0a", Some("cali+")),
        ("cni0", Some("cni0")),
        ("cni0 eni1", None),
        // A single pod of an unknown network does not tell what the next one's interface is called.
        ("tap7f", None),
        ("", None),
    ] {
        let names = names.split_whitespace().map(str::to_owned).collect();
        let pattern = common_pattern(&names).map(|pattern| pattern.to_string());
        assert_eq!(pattern.as_deref(), expected, "{names:?}");
    }
}

#[test]
fn auto_is_a_choice_and_not_an_interface() {
    assert_eq!("auto".parse(), Ok(InterfaceChoice::Auto));
    assert_eq!(
        "auto+".parse(),
        Ok(InterfaceChoice::Fixed("auto+".parse().unwrap()))
    );
    assert!("".parse::<InterfaceChoice>().is_err());
}
