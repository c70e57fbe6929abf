//! Generates the code of `crates/proto` from its protocol files; with `--check` only compares it with
//! the committed code. A separate program, so that it runs while the generated code doesn't build.

use std::path::Path;

use anyhow::{Context, ensure};

/// Messages that hold secrets: `crates/proto/src/secret.rs` says how they are shown.
const SECRET: [&str; 4] = [
    ".rolegate.v1.Hello",
    ".rolegate.v1.Reauthenticate",
    ".rolegate.v1.Credentials",
    ".kiam.Credentials",
];

fn main() -> anyhow::Result<()> {
    let check = std::env::args().any(|argument| argument == "--check");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/proto");
    let files = protox::compile(
        ["rolegate/v1/broker.proto", "kiam.proto"],
        [root.join("proto")],
    )?;
    let made = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .skip_debug(SECRET)
        .codec_path("crate::codec::SmallBuffers")
        // Connections are the runtime's, with its TLS.
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .out_dir(made.path())
        .compile_fds(files)?;
    for name in ["rolegate.v1.rs", "kiam.rs"] {
        let now = std::fs::read_to_string(made.path().join(name))?;
        let kept = root.join("src/generated").join(name);
        if check {
            ensure!(
                std::fs::read_to_string(&kept).unwrap_or_default() == now,
                "{} is out of date: run 'cargo run -p rolegate-protogen'",
                kept.display()
            );
        } else {
            std::fs::write(&kept, now).with_context(|| kept.display().to_string())?;
        }
    }
    Ok(())
}
