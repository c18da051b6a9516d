//! The scenarios of `make e2e`: whole ways through vmlet against a real API server, a real registry and
//! real virtual machines.
//!
//! A scenario is a name, a class and a function. `parallel` ones run beside each other on one agent, each
//! in a namespace of its own; `global` ones touch more than their own objects and run alone afterwards.

mod agent;
mod catalogue;
mod collection;
mod crash;
mod cx;
mod gate;
mod input;
mod life;
mod pool;
mod report;
mod sharing;
mod vm;
mod watched;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use catalogue::Scenario;

/// Whole ways through vmlet: from objects in the API to virtual machines and back.
#[derive(Debug, Parser)]
#[command(name = "vmlet-scenarios", max_term_width = 100)]
pub struct Settings {
    /// Scenarios of the class `parallel` that run at a time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Only these scenarios, by name, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub scenario: Vec<String>,
    /// Only say which scenarios there are.
    #[arg(long)]
    pub list: bool,
    /// The API: a real kube-apiserver with `vmlet controller` and `vmlet agent`, or `vmlet standalone`.
    #[arg(long, value_enum, default_value_t = ApiKind::Real)]
    pub api: ApiKind,
    /// The vmlet to try.
    #[arg(long, default_value = "target/debug/vmlet")]
    pub vmlet: PathBuf,
    /// OCI layout of the guest's image, as scripts/guest-image makes it.
    #[arg(long, default_value = ".cache/images/guest")]
    pub guest: PathBuf,
    /// OCI layout of a kernel, as `vmlet kernel package` makes it.
    #[arg(long, default_value = ".cache/e2e/kernel")]
    pub kernel: PathBuf,
    /// Where the output of each scenario is kept. What is in it is removed first.
    #[arg(long, default_value = ".cache/e2e/output")]
    pub output: PathBuf,
    /// Port of the embedded API; chosen at the start.
    #[arg(skip)]
    pub port: u16,
}

/// Which API serves the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ApiKind {
    /// kube-apiserver and etcd.
    Real,
    /// The embedded one.
    Standalone,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Settings::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all scenarios passed.
async fn run(settings: Settings) -> Result<bool> {
    let chosen = choose(&settings.scenario)?;
    if settings.list {
        for scenario in chosen {
            println!("{:<28}{:<10}{}", scenario.name, scenario.class.word(), scenario.proves);
        }
        return Ok(true);
    }
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let world = world::World::start(settings).await?;
    let outcome = tokio::select! {
        outcome = pool::run(&world, chosen) => outcome,
        _ = interrupt.recv() => bail_after("interrupted"),
        _ = terminate.recv() => bail_after("terminated"),
    };
    world.end().await;
    outcome
}

fn bail_after(why: &str) -> Result<bool> {
    bail!("{why}")
}

fn choose(names: &[String]) -> Result<Vec<Scenario>> {
    let all = catalogue::all();
    if names.is_empty() {
        return Ok(all);
    }
    for name in names {
        if !all.iter().any(|scenario| scenario.name == name) {
            bail!("there is no scenario {name:?}; `make e2e LIST=1` names them");
        }
    }
    Ok(all
        .into_iter()
        .filter(|scenario| names.iter().any(|name| name == scenario.name))
        .collect())
}
