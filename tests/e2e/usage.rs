//! Wrong usage is rejected at start, with a sentence that says what to do.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::Context;
use rolegate_testkit::Rolegate;

/// Runs `rolegate` until it exits; returns its exit code and its standard error.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<(Option<i32>, String)> {
    let mut command = Command::new("timeout");
    command
        // A process that starts although it should reject its arguments ends the test.
        .args(["-k", "1", "60"])
        .arg(Rolegate::path()?)
        .args(arguments)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs(environment.iter().copied());
    let output = command.output().context("timeout of coreutils is needed")?;
    Ok((output.status.code(), String::from_utf8(output.stderr)?))
}

#[test]
fn wrong_usage_exits_64_with_a_sentence() -> anyhow::Result<()> {
    let table: &[(&[&str], &str)] = &[
        (&["--no-such-flag"], "--no-such-flag"),
        (&["agent", "extra"], "extra"),
        (&["mend"], "mend"),
        (&["--app-port=99999"], "--app-port"),
        (
            &["--app-port=9000", "--metrics-port=9000"],
            "must differ from --app-port",
        ),
        (
            &["--metrics-port=1", "--metrics-address=127.0.0.1:1"],
            "--metrics-address",
        ),
        (&["--base-role-arn=role"], "--base-role-arn"),
        (&["--base-role-arn=arn:aws:s3:::bucket"], "--base-role-arn"),
        (&["--default-role=arn:aws:iam::1:role/x"], "--default-role"),
        (&["--reserved-role=a b"], "--reserved-role"),
        (&["--metadata-allow=("], "--metadata-allow"),
        (&["--metadata-allow=/latest/meta-data"], "use meta-data"),
        (&["--metadata-allow=/meta-data/.*/"], "use meta-data/.*"),
        (&["--metadata-allow=meta-data/iam/.*"], "matches no path"),
        (&["--metadata-addr=http://x/y"], "--metadata-addr"),
        (&["--iam-role-key="], "--iam-role-key"),
        (
            &["--namespace-restriction-format=perl"],
            "--namespace-restriction-format",
        ),
        (&["--imds-v2=maybe"], "--imds-v2"),
        (&["--session-scope=node"], "--session-scope"),
        (&["--session-duration=10m"], "--session-duration"),
        (&["--session-duration=13h"], "--session-duration"),
        (&["--iam-role-session-ttl=5m"], "--iam-role-session-ttl"),
        (
            &["--iam-role-session-ttl=1h", "--session-duration=1h"],
            "--session-duration",
        ),
        (&["--sts-calls-in-flight=-1"], "--sts-calls-in-flight"),
        (&["--assume-role=reader"], "--assume-role"),
        (
            &["--assume-role-external-id=hub"],
            "--assume-role-external-id",
        ),
        (&["--wait=1m"], "--wait"),
        (&["--wait=fast"], "15m, 1h30m"),
        (&["--drain-time=1h"], "--drain-time"),
        (&["--max-staleness=1s"], "--max-staleness"),
        (
            &["--max-connections-per-pod=0"],
            "--max-connections-per-pod",
        ),
        (&["--container-credentials"], "--node or NODE_NAME"),
        (
            &["--container-credentials-port=80"],
            "--container-credentials",
        ),
        (
            &["--container-credentials-audience=a"],
            "--container-credentials",
        ),
        (
            &["--container-credentials-address=169.254.170.23"],
            "--container-credentials",
        ),
        (
            &[
                "--container-credentials",
                "--broker=https://b:1",
                "--node=a",
            ],
            "--broker",
        ),
        (
            &[
                "--container-credentials",
                "--node=a",
                "--container-credentials-address=169.254.169.254",
            ],
            "169.254.169.254 cannot be",
        ),
        (
            &[
                "--container-credentials",
                "--node=a",
                "--container-credentials-address=127.0.0.1,127.0.0.1",
            ],
            "each once",
        ),
        (
            &[
                "--container-credentials",
                "--node=a",
                "--container-credentials-port=8181",
            ],
            "must differ from --app-port",
        ),
        (
            &[
                "--container-credentials",
                "--node=a",
                "--container-credentials-audience=sts.amazonaws.com",
            ],
            "valid at STS itself",
        ),
        (&["--redirect=pf"], "nftables"),
        (&["--redirect=nftables"], "--host-ip"),
        (
            &[
                "--redirect=nftables",
                "--host-ip=10.0.0.1",
                "--host-interface=a b",
            ],
            "--host-interface",
        ),
        (
            &["--redirect=nftables", "--iptables"],
            "give only one of them",
        ),
        (&["--redirect-interval=1ms"], "--redirect-interval"),
        (&["--host-ip=node-1"], "--host-ip"),
        (&["--log-level=loud"], "error, warn, info, debug, trace"),
        (&["--log-format=xml"], "--log-format"),
        (&["--debug=perhaps"], "--debug"),
        (&["--workloads=a", "--api-server=https://b"], "--api-server"),
        (&["--api-token=x"], "--api-token-file"),
        (&["--api-token-file=/dev/null"], "--api-server"),
        (&["--api-server=ftp://x"], "https://HOST:PORT"),
        (&["--kubeconfig=/nowhere/at/all"], "/nowhere/at/all"),
        (&["--workloads=/nowhere/at/all"], "/nowhere/at/all"),
        (&["--config=/nowhere/at/all"], "/nowhere/at/all"),
        (&["redirect"], "Usage"),
        (
            &["redirect", "apply", "--host-ip=10.0.0.1"],
            "--host-interface",
        ),
        (
            &[
                "redirect",
                "apply",
                "--host-ip=10.0.0.1",
                "--host-interface=a b",
            ],
            "--host-interface",
        ),
        (&["redirect", "show", "--backend=pf"], "nftables"),
        (&["redirect", "check", "--output=xml"], "--output"),
    ];
    let mut wrong = BTreeMap::new();
    for (arguments, hint) in table {
        let (code, said) = run(arguments, &[])?;
        if code != Some(64) || !said.contains(hint) || said.contains("panicked") {
            wrong.insert(
                arguments.join(" "),
                format!("exit {code:?}, no {hint:?} in: {said}"),
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[test]
fn what_is_wrong_in_the_configuration_file_is_named() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let table = [
        ("no-such-flag: 1", "no-such-flag is not a flag"),
        ("app_port: 8181", "app_port is not a flag"),
        ("config: other.yaml", "config is not a flag"),
        ("app-port: many", "many"),
        ("app-port: { a: 1 }", "write one value, or a list"),
        ("app-port: 8181\napp-port: 8182", "app-port"),
        ("wait: 1m", "--wait"),
        ("- a list", "YAML map of flags"),
        (
            "redirect: nftables\niptables: true\nhost-ip: 10.0.0.1",
            "give only one of them",
        ),
        (
            "session-duration: 1h\niam-role-session-ttl: 1h",
            "--session-duration",
        ),
    ];
    for (text, hint) in table {
        let path = dir.path().join("rolegate.yaml");
        std::fs::write(&path, text)?;
        let file = format!("--config={}", path.display());
        let (code, said) = run(&[&file], &[])?;
        assert!(
            code == Some(64) && said.contains(hint),
            "{text}: exit {code:?}, {said}"
        );
        let environment = [("ROLEGATE_CONFIG", path.to_str().context("a path")?)];
        let (code, said) = run(&["agent"], &environment)?;
        assert!(
            code == Some(64) && said.contains(hint),
            "{text}: exit {code:?}, {said}"
        );
    }
    Ok(())
}

#[test]
fn an_empty_value_switches_a_folder_off() -> anyhow::Result<()> {
    // The fault is elsewhere, so the accepted value is not reported.
    let flags = [
        "--runtime-dir=",
        "--redirect-check-dir=",
        "--max-staleness=1s",
    ];
    let (code, said) = run(&flags, &[])?;
    assert!(
        code == Some(64) && said.contains("--max-staleness"),
        "{said}"
    );
    let environment = [
        ("ROLEGATE_RUNTIME_DIR", ""),
        ("ROLEGATE_REDIRECT_CHECK_DIR", ""),
    ];
    let (code, said) = run(&["--max-staleness=1s"], &environment)?;
    assert!(
        code == Some(64) && said.contains("--max-staleness"),
        "{said}"
    );
    Ok(())
}

#[test]
fn command_line_goes_before_environment_before_file() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("rolegate.yaml");
    // The reason of the rejection shows which value was used.
    std::fs::write(&path, "wait: from-file\nreserved-role: [a, b]\n")?;
    let file = format!("--config={}", path.display());
    let environment = ("ROLEGATE_WAIT", "from-environment");
    let flag = "--wait=from-flag";
    for (arguments, environment, taken) in [
        (&[&*file][..], &[][..], "from-file"),
        (&[&file], &[environment], "from-environment"),
        (&[&file, flag], &[environment], "from-flag"),
        (&[flag, &file], &[], "from-flag"),
    ] {
        let (code, said) = run(arguments, environment)?;
        assert!(
            code == Some(64) && said.contains(&format!("'{taken}'")),
            "{taken}: {said}"
        );
    }
    // A valid value must not hide an invalid one further back.
    let (code, said) = run(&[&file, "--wait=1s", "--max-staleness=1s"], &[environment])?;
    assert!(
        code == Some(64) && said.contains("--max-staleness"),
        "{said}"
    );
    Ok(())
}
