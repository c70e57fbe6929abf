//! The images on the nodes of a test cluster, built once for each test process.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use parking_lot::Mutex;

use super::environment::STS_URL;
use super::image::{ImageBuilder, PAUSE, inside, run};
use crate::scratch::Scratch;
use crate::{Rolegate, python, repository};

/// The image of tests' pods: a shell, curl, Python with boto3, the AWS CLI. It waits until it is
/// stopped, and its SDKs use the environment's STS.
pub const CLIENT: &str = "localhost/client:1";

/// The services included from the SDKs' service descriptions, which have 150 MB.
const SERVICES: [&str; 6] = ["ec2", "iam", "s3", "sso", "sso-oidc", "sts"];
/// The packages of the test environment included for pods.
const PACKAGES: [&str; 13] = [
    "awscli",
    "boto3",
    "botocore",
    "s3transfer",
    "jmespath",
    "dateutil",
    "six.py",
    "urllib3",
    "docutils",
    "colorama",
    "rsa",
    "pyasn1",
    "yaml",
];
/// Prefixes of the modules of Python's library that no client needs.
const UNUSED: [&str; 8] = [
    "site-packages",
    "config-",
    "test",
    "idlelib",
    "tkinter",
    "ensurepip",
    "lib2to3",
    "turtledemo",
];
/// The path of these packages in pods.
const SITE_PACKAGES: &str = "/opt/python";
/// Waits, and exits at once on SIGTERM, which `sleep` would ignore as process 1.
const WAIT: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";

/// Names and archives.
pub(super) type Images = Vec<(String, PathBuf)>;

/// Returns the images, built by the first caller.
pub(super) fn standard() -> anyhow::Result<Images> {
    static MADE: Mutex<Option<(Scratch, Images)>> = Mutex::new(None);
    let mut made = MADE.lock();
    if let Some((_, images)) = &*made {
        return Ok(images.clone());
    }
    let scratch = Scratch::new("rolegate-images-")?;
    let folder = scratch.path();
    let mut images = Vec::new();
    let mut add = |name: &str, builder: ImageBuilder| {
        let archive = folder.join(format!("{}.tar", images.len()));
        images.push((name.to_owned(), archive.clone()));
        builder.build(name, &archive)
    };
    let pause = ImageBuilder::new(folder)?.program("sleep")?;
    add(PAUSE, pause.entrypoint(&["sleep", "infinity"]))?;
    add(&rolegate_name()?, rolegate(folder)?)?;
    add(CLIENT, client(folder)?)?;
    *made = Some((scratch, images.clone()));
    Ok(images)
}

/// Returns the name of our image in the shipped manifest.
fn rolegate_name() -> anyhow::Result<String> {
    let manifest = fs::read_to_string(repository().join("deploy/rolegate-agent.yaml"))?;
    let line = manifest
        .lines()
        .find_map(|line| line.trim().strip_prefix("image: "));
    Ok(line.context("the manifest names no image")?.to_owned())
}

/// Builds our image as docs/how-to/install.md does, around the binary under test: the binary, root
/// certificates and nft. Also sets the STS endpoint.
fn rolegate(folder: &Path) -> anyhow::Result<ImageBuilder> {
    let stripped = folder.join("rolegate");
    run(Command::new("strip")
        .arg("-o")
        .arg(&stripped)
        .arg(Rolegate::path()?))
    .context("the binary can't be stripped (binutils)")?;
    let target = Path::new("/usr/local/bin/rolegate");
    let mut image = ImageBuilder::new(folder)?
        .binary(&stripped, target)?
        .program("nft")?
        .entrypoint(&["/usr/local/bin/rolegate"])
        .env("AWS_ENDPOINT_URL", STS_URL);
    let certificates = Path::new("/etc/ssl/certs/ca-certificates.crt");
    if certificates.exists() {
        image = image.file(certificates, certificates)?;
    }
    Ok(image)
}

fn client(folder: &Path) -> anyhow::Result<ImageBuilder> {
    let mut image = ImageBuilder::new(folder)?;
    for program in [
        "sh", "bash", "curl", "sleep", "cat", "date", "env", "head", "grep", "sed", "id", "ls",
        "seq",
    ] {
        image = image.program(program)?;
    }
    let image = with_python(image)?;
    script(
        image.root(),
        "usr/bin/aws",
        "#!/bin/sh\nexec python3 -m awscli \"$@\"\n",
    )?;
    Ok(image
        .entrypoint(&["sh", "-c", WAIT])
        .env("AWS_ENDPOINT_URL", STS_URL)
        .env("AWS_DEFAULT_REGION", "eu-west-1")
        .env("PYTHONPATH", SITE_PACKAGES))
}

/// Adds the Python of the test environment, and the packages that pods use.
fn with_python(mut image: ImageBuilder) -> anyhow::Result<ImageBuilder> {
    let query = "import sys, sysconfig; paths = sysconfig.get_paths(); \
        print(sys._base_executable, paths['stdlib'], paths['purelib'], sep='\\n')";
    let output = run(Command::new(python::program("python")?).args(["-c", query]))?;
    let mut lines = output.lines().map(PathBuf::from);
    let mut next = || lines.next().context("Python doesn't say where it is");
    let (interpreter, library, packages) = (next()?, next()?, next()?);
    image = image.binary(&interpreter, &interpreter)?;
    for entry in fs::read_dir(&library)? {
        let entry = entry?;
        let name = entry.file_name();
        let unused = |prefix: &&str| name.to_string_lossy().starts_with(*prefix);
        if !UNUSED.iter().any(unused) {
            image = image.file(&entry.path(), &entry.path())?;
        }
    }
    let extensions: Vec<PathBuf> = fs::read_dir(library.join("lib-dynload"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    image = image.libraries_of(&extensions)?;
    for package in PACKAGES {
        image = with_package(image, &packages.join(package))?;
    }
    script(
        image.root(),
        "usr/bin/python3",
        &format!("#!/bin/sh\nexec {} \"$@\"\n", interpreter.display()),
    )?;
    Ok(image)
}

fn with_package(image: ImageBuilder, package: &Path) -> anyhow::Result<ImageBuilder> {
    let name = package.file_name().context("a package without name")?;
    let target = Path::new(SITE_PACKAGES).join(name);
    if name == "botocore" {
        return with_botocore(image, package, &target);
    }
    if name != "awscli" {
        return image.file(package, &target);
    }
    // The CLI includes its own SDK.
    let wanted = |name: &str| name != "examples" && name != "botocore";
    let image = shallow(image, package, &target, &wanted)?;
    with_botocore(image, &package.join("botocore"), &target.join("botocore"))
}

fn with_botocore(
    image: ImageBuilder,
    package: &Path,
    target: &Path,
) -> anyhow::Result<ImageBuilder> {
    let image = shallow(image, package, target, &|name| name != "data")?;
    let (data, target) = (package.join("data"), target.join("data"));
    let wanted = |name: &str| name.ends_with(".json") || SERVICES.contains(&name);
    let image = shallow(image, &data, &target, &wanted)?;
    // The other services must be known by name.
    for service in folders(&data)?.iter().filter(|name| !wanted(name)) {
        for version in folders(&data.join(service))? {
            let version = inside(image.root(), &target).join(service).join(version);
            fs::create_dir_all(&version)?;
            fs::write(version.join("service-2.json"), "{}")?;
        }
    }
    Ok(image)
}

/// Returns the names of the directories in a directory.
fn folders(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Adds the wanted entries of a directory, by name.
fn shallow(
    mut image: ImageBuilder,
    folder: &Path,
    target: &Path,
    wanted: &dyn Fn(&str) -> bool,
) -> anyhow::Result<ImageBuilder> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(wanted) {
            image = image.file(&entry.path(), &target.join(entry.file_name()))?;
        }
    }
    Ok(image)
}

/// Writes a script.
fn script(root: &Path, path: &str, text: &str) -> anyhow::Result<()> {
    let path = root.join(path);
    ensure!(!path.exists(), "{} is there already", path.display());
    fs::write(&path, text)?;
    Ok(fs::set_permissions(
        &path,
        fs::Permissions::from_mode(0o755),
    )?)
}
