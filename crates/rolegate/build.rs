//! Linker options of the program.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // This shrinks two megabytes of relocations to thirty kilobytes. Each agent reads them at
    // startup and keeps them in memory.
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
