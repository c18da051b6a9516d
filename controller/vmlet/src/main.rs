//! `vmlet`, a kubelet for virtual machines. This file only starts things; see `cli`.

mod admin;
mod check;
mod cli;
mod console;
mod footprint;
mod image;
mod kernel;
mod logs;
mod node;
mod output;
mod registries;
mod setup;
mod ssh;
mod standalone;
mod vm;

#[cfg(all(
    not(debug_assertions),
    any(
        feature = "bug-global-prune",
        feature = "bug-kernel-manifest-in-place",
        feature = "bug-no-coalescing",
        feature = "bug-seed-rewritten-in-place"
    )
))]
compile_error!("the bug-* features are for `make e2e-bugs` only; no release has them");

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match setup::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vmlet: {}", setup::causes(&error));
            ExitCode::FAILURE
        }
    }
}
