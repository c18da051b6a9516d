//! Measurements: `make bench` and `make bench-images` run this. Nothing here passes or fails by a number.

mod adoption;
mod api;
mod images;
mod memory;
mod procfs;
mod report;
mod standalone;
mod warm;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::report::Report;
use crate::standalone::Node;

#[derive(Parser)]
#[command(name = "vmlet-bench", about = "Measures vmlet beside what a user would pick instead")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure `vmlet standalone`: starts, adoption, memory, and its API beside the real one.
    Agent(Agent),
    /// Measure image builds beside other tools and beside the floor.
    Images(images::run::Images),
    /// The least that fetching, inflating, hashing and placing an image's data costs.
    Floor(images::Floor),
    /// Make the images that are measured from Debian packages.
    ImageSet(images::set::ImageSet),
    /// Push an OCI layout.
    Push(images::Push),
}

/// One part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From a create to the VMM's exec, with image and kernel present.
    Warm,
    /// Memory, idle wake-ups and adoption with many machines.
    Machines,
    /// The embedded API beside kube-apiserver and etcd.
    Api,
}

#[derive(Args)]
struct Agent {
    /// The vmlet binary, a release build.
    #[arg(long)]
    vmlet: PathBuf,
    /// OCI layout of a small guest.
    #[arg(long)]
    guest: PathBuf,
    /// OCI layout of a kernel, as `vmlet kernel package` makes it.
    #[arg(long)]
    kernel: PathBuf,
    /// OCI layout of a large image, which one of the machines runs.
    #[arg(long)]
    large: Option<PathBuf>,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Warm, Part::Machines, Part::Api])]
    only: Vec<Part>,
    /// Starts that are measured one after the other.
    #[arg(long, default_value_t = 30)]
    starts: usize,
    /// Machines that run at once while memory and adoption are measured.
    #[arg(long, default_value_t = 10)]
    machines: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Agent(args) => agent(&args).await,
        Command::Images(args) => images::run::run(args).await,
        Command::Floor(args) => images::floor(args).await,
        Command::ImageSet(args) => images::set::make(&args),
        Command::Push(args) => images::push(args).await,
    }
}

async fn agent(args: &Agent) -> Result<()> {
    let mut report = Report::begin("vmlet bench")?;
    if args.only.contains(&Part::Warm) || args.only.contains(&Part::Machines) {
        let mut node = Node::start(&args.vmlet, &args.guest, &args.kernel, args.large.as_deref()).await?;
        if args.only.contains(&Part::Warm) {
            warm::measure(&node, args.starts, &mut report).await?;
        }
        if args.only.contains(&Part::Machines) {
            // A fresh process: what earlier measurements left in its heap is not what is asked about.
            node.restart().await?;
            memory::measure(&node, args.machines, &mut report).await?;
            adoption::measure(&mut node, &mut report).await?;
        }
        node.end().await?;
    }
    if args.only.contains(&Part::Api) {
        api::measure(&args.vmlet, &mut report).await?;
    }
    report.end();
    Ok(())
}
