//! `vmlet`, a kubelet for virtual machines. This file only starts things; see `cli`.

mod admin;
mod check;
mod cli;
mod image;
mod kernel;
mod node;
mod setup;
mod standalone;
mod vm;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match setup::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vmlet: {error:#}");
            ExitCode::FAILURE
        }
    }
}
