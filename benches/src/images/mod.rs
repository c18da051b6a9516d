//! Images: from a registry to a synced disk, beside other tools and beside the floor.

mod fetch;
mod floor;
mod layer;
mod measure;
mod pipelines;
mod plot;
pub mod run;
mod scan;
pub mod set;
mod stages;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;

/// Settings of the floor probe.
#[derive(Args)]
pub struct Floor {
    /// The image, HOST:PORT/NAME:TAG in a registry that speaks plain HTTP.
    #[arg(long)]
    reference: String,
    /// File that gets the data of all layers.
    #[arg(long)]
    output: PathBuf,
    /// Also run the stages alone, and compare the sum of their CPU times.
    #[arg(long)]
    stages: bool,
}

/// Runs the floor probe.
pub async fn floor(args: Floor) -> Result<()> {
    let http = vmlet_e2e::registry::http_client()?;
    let layers = fetch::layers(&http, &args.reference).await?;
    let (before, start) = (measure::own_cpu(), Instant::now());
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| floor::run(&runtime, &http, &layers, &args.output))?;
    let (wall, cpu) = (start.elapsed(), measure::own_cpu() - before);
    println!("floor: {:.3} s, {:.3} CPU s", wall.as_secs_f64(), cpu.as_secs_f64());
    if args.stages {
        let stages = stages::alone(&http, &layers, &args.output).await?;
        for (name, time) in &stages {
            println!("alone: {:.3} CPU s {name}", time.as_secs_f64());
        }
        let sum: f64 = stages.iter().map(|(_, time)| time.as_secs_f64()).sum();
        println!(
            "alone: {sum:.3} CPU s in all; the floor has {:.2} times that",
            cpu.as_secs_f64() / sum
        );
    }
    Ok(())
}

/// Settings of a push.
#[derive(Args)]
pub struct Push {
    /// Directory of the OCI layout.
    #[arg(long)]
    layout: PathBuf,
    /// HOST:PORT/NAME:TAG in a registry that speaks plain HTTP.
    #[arg(long)]
    to: String,
}

/// Pushes a layout.
pub async fn push(args: Push) -> Result<()> {
    vmlet_e2e::layout::push(&args.layout, &args.to).await?;
    Ok(())
}
