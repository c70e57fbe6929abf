//! How the program is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Two megabytes of relocations become thirty kilobytes. They are read at the start of each
    // agent on each node, and count as its memory from then on.
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
