//! Builds the guest's init: a static binary with its own profile, which a normal dependency cannot be.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The guests are x86-64; glibc, because it is there wherever Rust for Linux is.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the outer cargo sets for itself and must not reach the inner one.
const INHERITED: [&str; 9] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_INCREMENTAL",
    "CARGO_MAKEFLAGS",
];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let guest = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR")).join("../guest");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", guest.join("src").display());
    println!("cargo::rerun-if-changed={}", guest.join("Cargo.toml").display());

    // A target directory of its own: the outer cargo holds the lock of the other one.
    let target = out.join("guest");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for name in INHERITED {
        cargo.env_remove(name);
    }
    // With `--target` the flags reach the binary only, not its build scripts. Offline: all that it
    // needs the outer build needs too.
    cargo
        .args([
            "build",
            "--offline",
            "--package",
            "vmlet-init",
            "--bin",
            "vmlet-init",
            "--profile",
            "init",
        ])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target)
        .arg("--manifest-path")
        .arg(guest.join("Cargo.toml"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "building the guest's init failed: {status}");
    let built = target.join(TARGET).join("init/vmlet-init");
    fs::copy(&built, out.join("vmlet-init")).expect("the built init is copied to OUT_DIR");
}
