//! Removal of what nobody uses, beside machines that run, rest and wait.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use kube::api::PostParams;
use serde_json::json;
use vmlet_e2e::wait::{self, Seen};

use crate::cx::{Cx, KEY, LIMIT, Pushed, script, service};
use crate::vm;

/// What nobody uses goes; what running, stopped and waiting machines use stays, and works.
pub async fn collection(cx: Cx) -> Result<()> {
    let mut images: Vec<Pushed> = Vec::new();
    for name in ["runs", "rests", "waits", "unused"] {
        let pushed = cx.push_guest(name, 1 << 20).await?;
        cx.image(name, &pushed.reference).await?;
        images.push(pushed);
    }
    cx.machine("runs", service("runs", "sleep 86400")).await?;
    // Ends with the number of its earlier runs.
    let counts = "n=$(cat /runs 2>/dev/null || echo 0); echo $((n + 1)) >/runs; exit $n";
    cx.machine("rests", script("rests", counts)).await?;
    let mut waiting = script("waits", "exit 0");
    waiting["guest"]["sshKeySecretRefs"] = json!([{"name": "later"}]);
    cx.machine("waits", waiting).await?;
    cx.machine("unused", script("unused", "exit 0")).await?;

    cx.until("unused", "its disk is ready", |vm| Ok(vm::is(vm, "DiskReady")))
        .await?;
    cx.delete("unused").await?;
    cx.gone("unused").await?;
    let running = cx.ready("runs").await?;
    cx.until("rests", "it has completed", |vm| vm::completed(vm, 0)).await?;
    cx.until("waits", "only its key is missing", |vm| {
        Ok(vm::is(vm, "ImageReady")
            && vm::is(vm, "KernelReady")
            && vm::condition(vm, "DiskReady").1 == "SecretNotFound")
    })
    .await?;
    let published = |at: usize| -> Result<PathBuf> {
        let repository = &images[at].repository;
        cx.published("images", repository)?
            .with_context(|| format!("{repository} is not on the disk"))
    };
    let used = [published(0)?, published(1)?, published(2)?];
    let inodes = used
        .iter()
        .map(|dir| Ok(dir.metadata()?.ino()))
        .collect::<Result<Vec<_>>>()?;
    let unused = published(3)?;

    // An agent collects when it starts, and what was used a moment ago stays: so all of it is made old.
    cx.world().kill_agent().await?;
    let yesterday = SystemTime::now() - Duration::from_secs(86_400);
    for kind in ["images", "kernels"] {
        for dir in std::fs::read_dir(cx.world().data().join("artifacts").join(kind))?.flatten() {
            std::fs::File::open(dir.path())?.set_modified(yesterday)?;
        }
    }
    cx.world().start_agent().await?;
    wait::until("the unused image is removed", LIMIT, || async {
        Ok(match unused.exists() {
            false => Seen::Done(()),
            true => Seen::NotYet(format!("{} is there", unused.display())),
        })
    })
    .await?;
    for (dir, inode) in used.iter().zip(inodes) {
        let now = dir
            .metadata()
            .with_context(|| format!("in use and removed: {}", dir.display()))?
            .ino();
        ensure!(now == inode, "in use, and made anew: {}", dir.display());
    }

    let now = cx.ready("runs").await?;
    ensure!(
        vm::boot_id(&now) == vm::boot_id(&running),
        "the running machine was restarted"
    );
    cx.change("rests", json!({"restartedAt": "2026-01-01T00:00:00Z"}))
        .await?;
    cx.until("rests", "it has run again, on the same disk", |vm| {
        Ok(vm::is(vm, "Completed") && vm::termination(vm).is_some_and(|end| end.exit_code == Some(1)))
    })
    .await?;
    let secret = serde_json::from_value(json!({"metadata": {"name": "later"}, "stringData": {"key": KEY}}))?;
    cx.api::<k8s_openapi::api::core::v1::Secret>()
        .create(&PostParams::default(), &secret)
        .await?;
    cx.until("waits", "it has completed", |vm| vm::completed(vm, 0)).await?;
    for image in &images {
        cx.one_get_each(&image.repository, image.blobs)?;
    }
    Ok(())
}
