//! Container images without a registry: OCI archives of programs on this machine, with the
//! libraries that they need.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::{Value, json};

/// The image of the pod sandbox.
pub(super) const PAUSE: &str = "localhost/pause:1";

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image being built: a directory of files, and the configuration of its containers.
#[derive(Debug)]
pub struct ImageBuilder {
    root: PathBuf,
    entrypoint: Vec<String>,
    env: Vec<String>,
}

impl ImageBuilder {
    /// Creates an empty image, whose files are collected in `folder`.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be created.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let root = folder.join("root");
        for path in ["etc", "tmp", "usr/bin", "root"] {
            fs::create_dir_all(root.join(path))?;
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        // The same links as on this machine, so that programs keep their paths.
        for name in ["bin", "sbin", "lib", "lib64"] {
            if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
                let target = target.strip_prefix("/").unwrap_or(&target);
                fs::create_dir_all(root.join(target))?;
                symlink(target, root.join(name))?;
            }
        }
        Ok(Self {
            root,
            entrypoint: Vec::new(),
            env: vec![
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            ],
        })
    }

    /// Sets the entry point.
    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(ToString::to_string).collect();
        self
    }

    /// Sets an environment variable, unless the pod overrides it.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push(format!("{key}={value}"));
        self
    }

    /// Adds a program from PATH at the same path, with its libraries.
    ///
    /// # Errors
    /// Returns an error if it does not exist, or is not an ELF file.
    pub fn program(self, name: &str) -> anyhow::Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path)
            .map(|folder| folder.join(name))
            .find(|candidate| candidate.is_file())
            .with_context(|| format!("{name} is missing: run `make setup`"))?;
        let target = found.clone();
        self.binary(&found, &target)
    }

    /// Adds a program as `target`, with its libraries.
    ///
    /// # Errors
    /// Returns an error if it cannot be read, or is not an ELF file.
    pub fn binary(self, source: &Path, target: &Path) -> anyhow::Result<Self> {
        for library in libraries(source)? {
            self.copy(&library, &library)?;
        }
        self.copy(source, target)?;
        Ok(self)
    }

    /// Adds the libraries of programs or libraries that are added as files.
    ///
    /// # Errors
    /// Returns an error if one cannot be read, or is not an ELF file.
    pub fn libraries_of(self, files: &[PathBuf]) -> anyhow::Result<Self> {
        for file in files {
            for library in libraries(file)? {
                self.copy(&library, &library)?;
            }
        }
        Ok(self)
    }

    /// Adds a file or a directory as `target`, following links.
    ///
    /// # Errors
    /// Returns an error if it cannot be read.
    pub fn file(self, source: &Path, target: &Path) -> anyhow::Result<Self> {
        self.copy(source, target)?;
        Ok(self)
    }

    /// Returns the directory of its files, for files that are not copies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn copy(&self, source: &Path, target: &Path) -> anyhow::Result<()> {
        let target = inside(&self.root, target);
        if target.is_file() {
            return Ok(());
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        run(Command::new("cp")
            .args([
                "--recursive",
                "--dereference",
                "--preserve=mode,timestamps",
                "--",
            ])
            .args([source, &target]))?;
        Ok(())
    }

    /// Writes the image as an archive for `ctr images import`.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub fn build(self, name: &str, archive: &Path) -> anyhow::Result<()> {
        let layout = self.root.with_file_name("layout");
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let layer = self.root.with_file_name("layer.tar");
        tar(&self.root, &layer)?;
        let layer = store(&blobs, &layer, LAYER)?;
        let config = write(
            &blobs,
            CONFIG,
            &json!({
                "architecture": architecture(), "os": "linux",
                "config": { "Entrypoint": self.entrypoint, "Env": self.env },
                "rootfs": { "type": "layers", "diff_ids": [layer.digest] },
            }),
        )?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
        });
        let mut manifest = write(&blobs, MANIFEST, &manifest)?;
        manifest
            .annotations
            .insert("io.containerd.image.name", name.to_owned());
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(layout.join("index.json"), index.to_string())?;
        fs::write(
            layout.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        tar(&layout, archive)?;
        fs::remove_dir_all(&layout)?;
        Ok(fs::remove_dir_all(&self.root)?)
    }
}

/// Returns a path of an image, below its root.
pub(super) fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Returns the architecture's name in Go and OCI.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The digest, size and type of a blob.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: String,
    size: u64,
    annotations: BTreeMap<&'static str, String>,
}

/// Writes a document as a blob and returns its descriptor.
fn write(blobs: &Path, media_type: &'static str, document: &Value) -> anyhow::Result<Descriptor> {
    let file = blobs.join("new");
    fs::write(&file, document.to_string())?;
    store(blobs, &file, media_type)
}

/// Moves a file to the blobs and returns its descriptor.
fn store(blobs: &Path, file: &Path, media_type: &'static str) -> anyhow::Result<Descriptor> {
    let size = file.metadata()?.len();
    let sum = run(Command::new("sha256sum").arg("--").arg(file))?;
    let sum = sum.split_whitespace().next().context("no sum")?;
    fs::rename(file, blobs.join(sum))?;
    Ok(Descriptor {
        media_type,
        digest: format!("sha256:{sum}"),
        size,
        annotations: BTreeMap::new(),
    })
}

/// Packs a directory into an archive owned by root.
fn tar(folder: &Path, archive: &Path) -> anyhow::Result<()> {
    run(Command::new("tar")
        .args(["--create", "--owner=0", "--group=0", "--numeric-owner"])
        .arg("--directory")
        .arg(folder)
        .arg("--file")
        .arg(archive)
        .arg("."))?;
    Ok(())
}

/// Returns the shared libraries of a program, and its loader.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listed = run(Command::new("ldd").arg(program))?;
    // `NAME => PATH (ADDRESS)`, and `PATH (ADDRESS)` for the loader.
    let paths = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// Runs a command to completion and returns its output.
pub(super) fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
