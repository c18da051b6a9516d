//! Command line of the end-to-end harness.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(
    name = "vmlet-e2e",
    about = "End-to-end scenarios of vmlet, and what they are made with"
)]
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
    /// Run a real control plane (etcd, kube-apiserver, kube-controller-manager) on free ports of this
    /// machine until SIGTERM. It leaves nothing behind.
    Controlplane {
        /// File to write an administrator's kubeconfig to, once the API is ready.
        #[arg(long)]
        kubeconfig: PathBuf,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Push { layout, reference } => println!("{}", vmlet_e2e::layout::push(&layout, &reference).await?),
        Command::Controlplane { kubeconfig } => control_plane(&kubeconfig).await?,
    }
    Ok(())
}

async fn control_plane(kubeconfig: &std::path::Path) -> Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let running = vmlet_e2e::controlplane::ControlPlane::start().await?;
    let temp = kubeconfig.with_extension("tmp");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temp)?;
    file.write_all(running.kubeconfig().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temp, kubeconfig)?;
    stop.recv().await;
    drop(running);
    Ok(())
}
