//! The life of a machine that nobody disturbs, and its end at any time.

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::cx::{Cx, KEY, LIMIT, script, service};
use crate::gate::Gate;
use crate::vm;

/// Counts its starts on its disk, without a sync, and waits to be stopped.
pub const COUNTER: &str =
    "n=$(($(cat /starts 2>/dev/null || echo 0) + 1)); echo $n >/starts; echo starts=$n; sleep 86400 & wait";

/// From objects to a machine that runs, tells the truth, stops and goes.
pub async fn bare_run(cx: Cx) -> Result<()> {
    cx.guest().await?;
    let mut spec = service(
        "guest",
        "echo boot=$(cat /proc/sys/kernel/random/boot_id)=; echo name=$(hostname)=; sleep 86400 & wait",
    );
    spec["interfaces"] = json!([{"name": "main", "nat": {"ports": [{"name": "ssh", "guestPort": 22}]}}]);
    cx.machine("bare", spec).await?;
    let seen = cx.ready("bare").await?;
    let status = seen.status.clone().unwrap_or_default();
    for type_ in [
        "Scheduled",
        "ImageReady",
        "KernelReady",
        "DiskReady",
        "NetworkReady",
        "Running",
        "GuestReady",
    ] {
        ensure!(
            vm::is(&seen, type_),
            "{type_} is not True although Ready is: {}",
            vm::words(&seen)
        );
    }
    ensure!(
        status.observed_generation == seen.metadata.generation,
        "the status is of an older spec"
    );
    ensure!(
        status.restart_count == 0,
        "it was restarted {} times",
        status.restart_count
    );
    ensure!(
        status.image.as_ref().is_some_and(|i| i.digest.starts_with("sha256:")),
        "no image is pinned"
    );
    ensure!(
        status.kernel.as_ref().is_some_and(|k| !k.version.is_empty()),
        "no kernel is pinned"
    );
    ensure!(
        status.vmm.as_ref().is_some_and(|v| v.type_ == "QEMU"),
        "no VMM: {:?}",
        status.vmm
    );
    ensure!(
        status.ports.iter().all(|p| p.host_port.is_some()),
        "no port: {:?}",
        status.ports
    );
    ensure!(!status.boot_timings.is_empty(), "no timings");
    let boot = vm::boot_id(&seen).context("no boot id")?;
    cx.console(&seen, &format!("boot={boot}=")).await?;
    cx.console(&seen, "name=bare=").await?;
    for reason in ["Started", "GuestReady"] {
        cx.event("bare", reason).await?;
    }
    cx.change("bare", json!({"runStrategy": "Halted"})).await?;
    let halted = cx
        .until(
            "bare",
            "it is halted",
            |vm| Ok(vm::condition(vm, "Ready").1 == "Halted"),
        )
        .await?;
    ensure!(
        !vm::is(&halted, "Running"),
        "it is Halted and Running: {}",
        vm::words(&halted)
    );
    cx.delete("bare").await?;
    cx.gone("bare").await?;
    cx.nothing_of(&seen.uid().context("no uid")?)
}

/// Keys of the spec and of a secret reach the running guest; nothing is restarted for them.
pub async fn keys_follow(cx: Cx) -> Result<()> {
    let secrets = cx.api::<k8s_openapi::api::core::v1::Secret>();
    let secret = |key: &str| serde_json::from_value(json!({"metadata": {"name": "keys"}, "stringData": {"key": key}}));
    secrets
        .create(&PostParams::default(), &secret(&format!("{KEY} first-of-secret"))?)
        .await?;
    cx.guest().await?;
    let text = "while :; do cat /root/.ssh/authorized_keys; sleep 1; done";
    let mut spec = service("guest", text);
    spec["guest"]["sshAuthorizedKeys"] = json!([format!("{KEY} first-of-spec")]);
    spec["guest"]["sshKeySecretRefs"] = json!([{"name": "keys"}]);
    cx.machine("open", spec).await?;
    let first = cx.ready("open").await?;
    cx.console(&first, "first-of-secret").await?;

    let keys = json!([format!("{KEY} second-of-spec")]);
    cx.change("open", json!({"guest": {"sshAuthorizedKeys": keys}})).await?;
    cx.console(&first, "second-of-spec").await?;
    secrets
        .patch(
            "keys",
            &PatchParams::default(),
            &Patch::Merge(json!({"stringData": {"key": format!("{KEY} second-of-secret")}})),
        )
        .await?;
    cx.console(&first, "second-of-secret").await?;
    let last = cx
        .until("open", "what was asked is done", |vm| {
            Ok(vm.status.as_ref().and_then(|s| s.observed_generation) == vm.metadata.generation)
        })
        .await?;
    ensure!(!vm::is(&last, "RestartRequired"), "{}", vm::words(&last));
    ensure!(vm::boot_id(&last) == vm::boot_id(&first), "it was started again");
    Ok(())
}

/// The exit code of the entrypoint is the machine's.
pub async fn exit_code(cx: Cx) -> Result<()> {
    cx.guest().await?;
    for code in [0, 42] {
        cx.machine(&format!("ends-with-{code}"), script("guest", &format!("exit {code}")))
            .await?;
    }
    for (code, reason) in [(0, "Succeeded"), (42, "Failed")] {
        let name = format!("ends-with-{code}");
        let seen = cx
            .until(&name, "it has completed", |vm| vm::completed(vm, code))
            .await?;
        let (_, said, _) = vm::condition(&seen, "Completed");
        ensure!(said == reason, "Completed has the reason {said} after exit code {code}");
        let count = seen.status.as_ref().map_or(0, |s| s.restart_count);
        ensure!(count == 0, "a machine that runs Once was started again {count} times");
        let note = cx.event(&name, "Exited").await?;
        ensure!(
            code == 0 || note.contains("42"),
            "the event does not name the exit code: {note}"
        );
    }
    Ok(())
}

/// Halted stops gracefully, and what was written before is there after the next start.
pub async fn stop_start(cx: Cx) -> Result<()> {
    cx.guest().await?;
    cx.machine("kept", service("guest", COUNTER)).await?;
    let first = cx.ready("kept").await?;
    cx.console(&first, "starts=1").await?;
    cx.change("kept", json!({"runStrategy": "Halted"})).await?;
    let halted = cx
        .until("kept", "it is halted", |vm| {
            Ok(vm::condition(vm, "Ready").1 == "Halted" && !vm::is(vm, "Running"))
        })
        .await?;
    let end = vm::termination(&halted).context("how it ended is not told")?;
    ensure!(
        end.reason == "Stopped",
        "a stop ended as {}: {}",
        end.reason,
        end.message
    );
    cx.change("kept", json!({"runStrategy": "Always"})).await?;
    let second = cx.ready("kept").await?;
    cx.console(&second, "starts=2").await?;
    ensure!(
        vm::boot_id(&first) != vm::boot_id(&second),
        "another boot has the same boot id"
    );
    let count = second.status.as_ref().map_or(0, |s| s.restart_count);
    ensure!(count == 0, "a start that was asked for counts as a restart");
    Ok(())
}

/// A new restartedAt gives one restart.
pub async fn restart(cx: Cx) -> Result<()> {
    cx.guest().await?;
    cx.machine("again", service("guest", COUNTER)).await?;
    let first = cx.ready("again").await?;
    // Ready is told when the entrypoint is executed, not when it has counted.
    cx.console(&first, "starts=1").await?;
    let boot = vm::boot_id(&first).context("no boot id")?.to_owned();
    cx.change("again", json!({"restartedAt": "2026-01-01T00:00:00Z"}))
        .await?;
    let second = cx
        .until("again", "it is Ready with another boot id", |now| {
            Ok(vm::ready(now)? && vm::boot_id(now).is_some_and(|id| id != boot))
        })
        .await?;
    cx.console(&second, "starts=2").await?;
    let status = second.status.clone().unwrap_or_default();
    ensure!(
        status.observed_restarted_at == second.spec.restarted_at,
        "the restart is not acknowledged"
    );
    ensure!(
        status.restart_count == 0,
        "a restart that was asked for counts as one after a failure"
    );
    Ok(())
}

/// Deletion waits for no registry, and ends the pull that nobody wants any more.
pub async fn delete_while_pulling(cx: Cx) -> Result<()> {
    let pushed = cx.push_guest("image", 1 << 20).await?;
    let gate = Gate::shut(cx.world().registry.address()).await?;
    cx.image("slow", &pushed.reference_at(gate.address())).await?;
    let created = cx.machine("early", script("slow", "exit 0")).await?;
    cx.until("early", "it is being pulled", |vm| {
        Ok(vm::condition(vm, "ImageReady").1 == "Pulling")
    })
    .await?;
    gate.holds(LIMIT).await?;
    cx.delete("early").await?;
    cx.gone("early").await?;
    gate.is_idle(LIMIT).await?;
    cx.nothing_of(&created.uid().context("no uid")?)?;
    ensure!(
        cx.published("images", &pushed.repository)?.is_none(),
        "half an image was published"
    );
    Ok(())
}

/// A machine that boots can be deleted.
pub async fn delete_while_booting(cx: Cx) -> Result<()> {
    cx.guest().await?;
    let mut spec = service("guest", "sleep 86400");
    spec["terminationGracePeriodSeconds"] = 5.into();
    let created = cx.machine("early", spec).await?;
    cx.until("early", "it boots", |vm| {
        Ok(vm::condition(vm, "Running").1 == "Starting")
    })
    .await?;
    cx.delete("early").await?;
    cx.gone("early").await?;
    cx.nothing_of(&created.uid().context("no uid")?)
}
