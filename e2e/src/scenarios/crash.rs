//! The agent is killed at any moment, replaced, doubled, and finds damage when it starts.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt;
use serde_json::json;
use vmlet_crds::VirtualMachine;

use crate::cx::{Cx, LIMIT, script, service};
use crate::gate::Gate;
use crate::life::COUNTER;
use crate::{vm, world};

/// Killed in the middle of a transfer.
pub async fn kill_while_pulling(cx: Cx) -> Result<()> {
    let pushed = cx.push_guest("image", 1 << 20).await?;
    let gate = Gate::shut(cx.world().registry.address()).await?;
    cx.image("slow", &pushed.reference_at(gate.address())).await?;
    cx.machine("patient", script("slow", "exit 0")).await?;
    gate.holds(LIMIT).await?;
    cx.until("patient", "it is being pulled", |vm| {
        Ok(vm::condition(vm, "ImageReady").1 == "Pulling")
    })
    .await?;
    cx.world().kill_agent().await?;
    gate.open();
    cx.world().start_agent().await?;
    cx.until("patient", "it has completed", |vm| vm::completed(vm, 0))
        .await?;
    Ok(())
}

/// Killed when the VMM runs and the guest is not ready: the next agent goes on with that very boot.
pub async fn kill_while_booting(cx: Cx) -> Result<()> {
    cx.guest().await?;
    cx.machine("once", service("guest", COUNTER)).await?;
    cx.until(
        "once",
        "it boots",
        |vm| Ok(vm::condition(vm, "Running").1 == "Starting"),
    )
    .await?;
    cx.world().kill_agent().await?;
    // None, if the agent was killed before it executed one.
    let before = world::vmms(&cx.world().data());
    cx.world().start_agent().await?;
    let seen = cx.ready("once").await?;
    cx.console(&seen, "starts=1").await?;
    let after = world::vmms(&cx.world().data());
    ensure!(
        after.len() == 1 && before.iter().all(|pid| after.contains(pid)),
        "another VMM was started: {before:?} before, {after:?} after"
    );
    not_restarted(&seen)
}

/// Killed beside a machine that runs.
pub async fn kill_while_running(cx: Cx) -> Result<()> {
    cx.guest().await?;
    cx.machine("calm", service("guest", COUNTER)).await?;
    let before = cx.ready("calm").await?;
    let vmms = world::vmms(&cx.world().data());
    for _ in 0..2 {
        cx.world().kill_agent().await?;
        cx.world().start_agent().await?;
    }
    // It is asked for something, so that what is seen is the new agent's word.
    let ports = json!([{"name": "main", "nat": {"ports": [{"name": "web", "guestPort": 80}]}}]);
    cx.change("calm", json!({"interfaces": ports})).await?;
    let after = cx
        .until("calm", "it is Ready with a port", |vm| {
            Ok(vm::ready(vm)?
                && vm::boot_id(vm).is_some()
                && vm
                    .status
                    .as_ref()
                    .is_some_and(|s| s.ports.iter().any(|p| p.host_port.is_some())))
        })
        .await?;
    ensure!(
        vm::boot_id(&after) == vm::boot_id(&before),
        "the guest was booted again"
    );
    ensure!(world::vmms(&cx.world().data()) == vmms, "another VMM runs");
    not_restarted(&after)
}

/// Killed in a stop, while the guest takes its time.
pub async fn kill_while_stopping(cx: Cx) -> Result<()> {
    cx.guest().await?;
    let slow = "trap 'sleep 3; echo bye; exit 0' TERM; echo ready; sleep 86400 & wait";
    let mut spec = service("guest", slow);
    spec["terminationGracePeriodSeconds"] = 120.into();
    cx.machine("slow", spec).await?;
    let running = cx.ready("slow").await?;
    cx.console(&running, "ready").await?;
    cx.change("slow", json!({"runStrategy": "Halted"})).await?;
    cx.until(
        "slow",
        "it stops",
        |vm| Ok(vm::condition(vm, "Running").1 == "Stopping"),
    )
    .await?;
    cx.world().kill_agent().await?;
    cx.world().start_agent().await?;
    let halted = cx
        .until("slow", "it is halted", |vm| {
            Ok(vm::condition(vm, "Ready").1 == "Halted" && !vm::is(vm, "Running"))
        })
        .await?;
    let end = vm::termination(&halted).context("how it ended is not told")?;
    ensure!(
        end.reason == "Stopped",
        "the stop ended as {}: {}",
        end.reason,
        end.message
    );
    ensure!(world::vmms(&cx.world().data()).is_empty(), "a VMM is left");
    Ok(())
}

/// Killed in a deletion, while the guest takes its time.
pub async fn kill_while_deleting(cx: Cx) -> Result<()> {
    cx.guest().await?;
    let mut spec = service("guest", "trap 'sleep 3; exit 0' TERM; echo ready; sleep 86400 & wait");
    spec["terminationGracePeriodSeconds"] = 120.into();
    let created = cx.machine("slow", spec).await?;
    let running = cx.ready("slow").await?;
    cx.console(&running, "ready").await?;
    cx.delete("slow").await?;
    cx.until("slow", "it is being deleted", |vm| {
        Ok(vm::condition(vm, "Ready").1 == "Terminating")
    })
    .await?;
    cx.world().kill_agent().await?;
    cx.world().start_agent().await?;
    cx.gone("slow").await?;
    cx.nothing_of(&created.uid().context("no uid")?)
}

/// A second agent on one data directory says so and ends.
pub async fn second_agent(cx: Cx) -> Result<()> {
    cx.guest().await?;
    cx.machine("calm", service("guest", "sleep 86400")).await?;
    let before = cx.ready("calm").await?;
    let mut command = tokio::process::Command::from(cx.world().second_agent());
    command.kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), command.output())
        .await
        .context("the second agent does not end")??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "the second agent ends with success: {said}");
    ensure!(
        said.contains("another vmlet"),
        "the second agent does not say why it ends: {said}"
    );
    if let Some(trouble) = cx.world().agent_trouble().await {
        anyhow::bail!("the first agent was disturbed: {trouble}");
    }
    let after = cx.ready("calm").await?;
    ensure!(vm::boot_id(&after) == vm::boot_id(&before), "the machine was disturbed");
    Ok(())
}

/// Torn records are set aside and repaired; the machine that they tell of runs on.
pub async fn torn_record(cx: Cx) -> Result<()> {
    cx.guest().await?;
    let created = cx.machine("calm", service("guest", COUNTER)).await?;
    let before = cx.ready("calm").await?;
    let vmms = world::vmms(&cx.world().data());
    let uid = created.uid().context("no uid")?;
    cx.world().kill_agent().await?;
    let machine = cx.world().data().join("machines").join(&uid).join("record.json");
    tear(&machine)?;
    tear(&cx.world().data().join("node/vms").join(format!("{uid}.json")))?;
    cx.world().start_agent().await?;
    let ports = json!([{"name": "main", "nat": {"ports": [{"name": "web", "guestPort": 80}]}}]);
    cx.change("calm", json!({"interfaces": ports})).await?;
    let after = cx
        .until("calm", "it is Ready with a port", |vm| {
            Ok(vm::ready(vm)?
                && vm::boot_id(vm).is_some()
                && vm
                    .status
                    .as_ref()
                    .is_some_and(|s| s.ports.iter().any(|p| p.host_port.is_some())))
        })
        .await?;
    ensure!(
        vm::boot_id(&after) == vm::boot_id(&before),
        "the guest was booted again"
    );
    ensure!(world::vmms(&cx.world().data()) == vmms, "another VMM runs");
    ensure!(
        machine.with_extension("json.broken").exists(),
        "the torn record was not set aside"
    );
    cx.delete("calm").await?;
    cx.gone("calm").await?;
    cx.nothing_of(&uid)
}

/// After everything else nothing is left but what is cached.
pub async fn nothing_left(cx: Cx) -> Result<()> {
    let data = cx.world().data();
    let machines = world::machines(&data);
    ensure!(machines.is_empty(), "machines are left: {machines:?}");
    for dir in ["artifacts/tmp", "artifacts/intents", "artifacts/pins"] {
        let left: Vec<_> = std::fs::read_dir(data.join(dir))?
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        ensure!(left.is_empty(), "{dir} holds {left:?}");
    }
    Ok(())
}

fn tear(file: &Path) -> Result<()> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    Ok(std::fs::write(file, &bytes[..bytes.len() / 2])?)
}

fn not_restarted(vm: &VirtualMachine) -> Result<()> {
    let count = vm.status.as_ref().map_or(0, |status| status.restart_count);
    ensure!(count == 0, "it was restarted {count} times");
    Ok(())
}
