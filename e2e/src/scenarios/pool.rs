//! Runs scenarios: the parallel ones some at a time, then the global ones one by one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::catalogue::{Class, Scenario};
use crate::cx::{Cx, script};
use crate::world::World;
use crate::{report, vm};

/// No scenario may take longer, whatever it does.
const SCENARIO_LIMIT: Duration = Duration::from_secs(480);

struct Finished {
    scenario: Scenario,
    took: Duration,
    failed: bool,
}

/// Runs them and prints how they end. Whether all passed.
pub async fn run(world: &Arc<World>, scenarios: Vec<Scenario>) -> Result<bool> {
    warm_up(world).await.context("the first machine, before any scenario")?;
    let start = Instant::now();
    let (parallel, global): (Vec<_>, Vec<_>) = scenarios.into_iter().partition(|s| s.class == Class::Parallel);
    let slots = Arc::new(Semaphore::new(usize::from(world.settings.jobs)));
    let mut running = JoinSet::new();
    for scenario in parallel {
        let (world, slots) = (world.clone(), slots.clone());
        running.spawn(async move {
            // The semaphore is fair: they start in the order of the list.
            let _slot = slots.acquire_owned().await;
            one(&world, scenario).await
        });
    }
    let mut finished = Vec::new();
    while let Some(outcome) = running.join_next().await {
        finished.push(outcome.context("a scenario panicked")?);
    }
    let pool = start.elapsed();
    for scenario in global {
        finished.push(one(world, scenario).await);
    }
    let failed: Vec<&str> = finished.iter().filter(|f| f.failed).map(|f| f.scenario.name).collect();
    let sum: Duration = finished.iter().map(|f| f.took).sum();
    println!(
        "\n{} passed, {} failed in {:.1} s (parallel ones {:.1} s with {} at a time; one after the other it would be {:.1} s)",
        finished.len() - failed.len(),
        failed.len(),
        start.elapsed().as_secs_f64(),
        pool.as_secs_f64(),
        world.settings.jobs,
        sum.as_secs_f64()
    );
    if !failed.is_empty() {
        println!("failed: {}", failed.join(" "));
    }
    println!("output: {}", world.settings.output.display());
    Ok(failed.is_empty())
}

/// Runs one machine to its end, so that no scenario waits for the pull of what all of them share.
async fn warm_up(world: &Arc<World>) -> Result<()> {
    let start = Instant::now();
    let cx = Cx::new(world.clone(), "warm-up").await?;
    cx.guest().await?;
    cx.machine("first", script("guest", "exit 0")).await?;
    cx.until("first", "it has completed", |vm| vm::completed(vm, 0)).await?;
    cx.clean_up().await?;
    println!("warm {:<28}{:6.1} s", "", start.elapsed().as_secs_f64());
    Ok(())
}

async fn one(world: &Arc<World>, scenario: Scenario) -> Finished {
    let start = Instant::now();
    let result = attempt(world, scenario).await;
    let took = start.elapsed();
    let (word, text) = match &result {
        Ok(note) => ("ok  ", note.clone()),
        Err(text) => ("FAIL", String::from("\n") + text),
    };
    println!("{word} {:<28}{:6.1} s  {text}", scenario.name, took.as_secs_f64());
    Finished {
        scenario,
        took,
        failed: result.is_err(),
    }
}

/// The note of a scenario that passed, or all that is to be known of one that failed.
async fn attempt(world: &Arc<World>, scenario: Scenario) -> Result<String, String> {
    let cx = match Cx::new(world.clone(), scenario.name).await {
        Ok(cx) => cx,
        Err(error) => return Err(format!("    cannot begin: {error:#}\n")),
    };
    let outcome = tokio::time::timeout(SCENARIO_LIMIT, (scenario.run)(cx.clone()))
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("it takes longer than {SCENARIO_LIMIT:?}")));
    // Before the clean-up changes it.
    let seen = report::gather(&cx).await;
    let cleaned = cx.clean_up().await;
    let result = outcome.and_then(|()| cleaned.context("at the end, when everything is deleted"));
    report::keep(&cx, result.as_ref().err(), &seen);
    match result {
        Ok(()) => Ok(cx.note()),
        Err(error) => Err(format!("    {error:#}\n{}", report::indented(&seen))),
    }
}
