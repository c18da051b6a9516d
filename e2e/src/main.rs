//! Command line of the end-to-end harness.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "vmlet-e2e", about = "End-to-end scenarios of vmlet, and what they are made with")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Push an OCI image layout to a registry on this machine (plain HTTP) and print its digest.
    Push {
        /// Directory with the layout.
        layout: PathBuf,
        /// Where to, as HOST:PORT/NAME[:TAG].
        reference: String,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Push { layout, reference } => println!("{}", vmlet_e2e::layout::push(&layout, &reference).await?),
    }
    Ok(())
}
