//! `vmlet standalone` as its users meet it: the real binary, a real kubeconfig, a real machine.

mod admin;
mod commands;
mod kit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use vmlet_e2e::wait::{self, Seen};

use kit::{Standalone, User, kind, prerequisites};

/// Writers at once while the process is killed: they share commits.
const WRITERS: usize = 4;

fn config_map(name: &str, value: usize) -> ConfigMap {
    ConfigMap {
        metadata: kube::api::ObjectMeta {
            name: Some(name.to_owned()),
            ..Default::default()
        },
        data: Some(BTreeMap::from([("value".to_owned(), value.to_string())])),
        ..Default::default()
    }
}

fn version(object: &ConfigMap) -> Result<u64> {
    let text = object
        .metadata
        .resource_version
        .as_deref()
        .context("a resourceVersion")?;
    Ok(text.parse()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_by_kill_9_and_versions_only_grow() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut acknowledged: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let mut newest = 0;
    for round in 0..3 {
        let mut server = Standalone::start(dir.path(), User::Own).await?;
        let maps: Api<ConfigMap> = Api::namespaced(server.client().await?, "default");
        for (name, (version_then, value)) in &acknowledged {
            let now = maps
                .get(name)
                .await
                .with_context(|| format!("{name} was acknowledged"))?;
            let data = now.data.clone().unwrap_or_default();
            // One more write may have been stored whose answer the kill cut off.
            ensure!(version(&now)? >= *version_then, "{name}: {now:?}");
            ensure!(
                version(&now)? > *version_then || data.get("value") == Some(value),
                "{name}: {now:?}"
            );
        }
        let enough = Arc::new(tokio::sync::Semaphore::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (maps, enough, stop) = (maps.clone(), enough.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut done = Vec::new();
                    for number in 0.. {
                        let name = format!("round-{round}-writer-{writer}-{}", number / 3);
                        let object = config_map(&name, number);
                        let answer = match number % 3 {
                            0 => maps.create(&PostParams::default(), &object).await,
                            _ => maps.patch(&name, &PatchParams::default(), &Patch::Merge(&object)).await,
                        };
                        match answer {
                            Ok(object) => done.push(object),
                            Err(_) if stop.load(Ordering::Acquire) => break,
                            Err(error) => return Err(anyhow::Error::from(error).context("before the kill")),
                        }
                        enough.add_permits(1);
                    }
                    Ok(done)
                })
            })
            .collect();
        // Killed in the middle of writing, after some of it was acknowledged.
        enough.acquire_many(60).await?.forget();
        stop.store(true, Ordering::Release);
        server.kill()?;
        for writer in writers {
            for object in writer.await?? {
                let version = version(&object)?;
                ensure!(version > newest, "version {version} after {newest} of the round before");
                let value = object.data.unwrap_or_default().remove("value").unwrap_or_default();
                let name = object.metadata.name.unwrap_or_default();
                let entry = acknowledged.entry(name).or_default();
                *entry = (*entry).clone().max((version, value));
            }
        }
        newest = acknowledged
            .values()
            .map(|(version, _)| *version)
            .max()
            .unwrap_or_default();
    }
    let mut server = Standalone::start(dir.path(), User::Own).await?;
    let maps: Api<ConfigMap> = Api::namespaced(server.client().await?, "default");
    let list = maps.list(&ListParams::default()).await?;
    let names: Vec<_> = list.items.iter().filter_map(|m| m.metadata.name.clone()).collect();
    for name in acknowledged.keys() {
        ensure!(names.contains(name), "{name} is gone");
    }
    server.kill()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_one_on_the_same_data_directory_says_who_uses_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut first = Standalone::start(dir.path(), User::Own).await?;
    let complaint = match Standalone::start(dir.path(), User::Own).await {
        Ok(_) => anyhow::bail!("a second one started"),
        Err(complaint) => format!("{complaint:#}"),
    };
    ensure!(
        complaint.contains("another vmlet") && complaint.contains("--data-dir"),
        "{complaint}"
    );
    first.check()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_becomes_a_machine_and_goes_without_a_trace() -> Result<()> {
    main_job(User::Own).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_user_gets_the_whole_main_job() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: the other tests run as an ordinary user already");
        return Ok(());
    }
    main_job(User::Nobody).await
}

/// Apply, Ready, kill -9 of the process, adoption with the same boot id, halt, start again, delete.
async fn main_job(user: User) -> Result<()> {
    let Some(parts) = prerequisites() else {
        println!("skipped: VMLET_TEST_GUEST and VMLET_TEST_KERNEL_DEB name no files; scripts/test sets them");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    kit::import(dir.path(), &parts)?;
    let mut server = Standalone::start(dir.path(), user).await?;
    let client = server.client().await?;
    let apply = PatchParams::apply("test");
    let (images, kernels) = (kind(&client, "Image"), kind(&client, "Kernel"));
    let machines = kind(&client, "VirtualMachine");
    let manifest = |kind: &str, name: &str, spec: serde_json::Value| json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let image = json!({"source": {"path": {"path": "guest"}}, "kernelRef": {"name": "debian"}});
    let kernel = json!({"source": {"path": {"path": "kernel"}}});
    let machine = json!({
        "imageRef": {"name": "guest"}, "memory": {"size": "128Mi"}, "terminationGracePeriodSeconds": 20,
        "interfaces": [{"name": "main", "nat": {"ports": [{"name": "ssh", "guestPort": 22}]}}],
    });
    machines
        .patch("one", &apply, &Patch::Apply(manifest("VirtualMachine", "one", machine)))
        .await?;
    // What a machine names may come after it.
    server.condition(&machines, "one", "ImageReady", "False").await?;
    kernels
        .patch("debian", &apply, &Patch::Apply(manifest("Kernel", "debian", kernel)))
        .await?;
    images
        .patch("guest", &apply, &Patch::Apply(manifest("Image", "guest", image)))
        .await?;
    let ready = server.condition(&machines, "one", "Ready", "True").await?;
    let boot = ready.data["status"]["bootID"].clone();
    ensure!(boot.is_string(), "{:?}", ready.data);
    ensure!(
        ready.data["status"]["ports"][0]["hostPort"].is_number(),
        "{:?}",
        ready.data
    );

    server.kill()?;
    let mut server = Standalone::start(dir.path(), user).await?;
    let client = server.client().await?;
    let machines = kind(&client, "VirtualMachine");
    let adopted = server.condition(&machines, "one", "Ready", "True").await?;
    ensure!(
        adopted.data["status"]["bootID"] == boot,
        "{boot} became {:?}",
        adopted.data["status"]
    );

    let strategy = |to: &str| Patch::Merge(json!({"spec": {"runStrategy": to}}));
    machines
        .patch("one", &PatchParams::default(), &strategy("Halted"))
        .await?;
    let halted = server.condition(&machines, "one", "Running", "False").await?;
    let reason = &halted.data["status"]["lastTermination"]["reason"];
    ensure!(reason != "ForcedKill", "{:?}", halted.data["status"]);
    machines
        .patch("one", &PatchParams::default(), &strategy("Always"))
        .await?;
    let again = server.condition(&machines, "one", "Ready", "True").await?;
    ensure!(again.data["status"]["bootID"] != boot, "{:?}", again.data["status"]);

    // Of all that was written to its status, only what is not the agent's is put right.
    let address = server.admin().await?;
    let foreign = |count: u32| {
        let (address, line) = (address.clone(), format!("vmlet_foreign_statuses_total {count}\n"));
        async move {
            let (_, text) = kit::http_get(&address, "/metrics").await?;
            ensure!(text.contains(&line), "{text}");
            Ok(())
        }
    };
    foreign(0).await?;
    let evil = Patch::Merge(json!({"status": {"restartCount": 55, "sshHostKey": "evil"}}));
    let evil = machines.patch_status("one", &PatchParams::default(), &evil).await?;
    ensure!(evil.data["status"]["restartCount"] == 55, "{:?}", evil.data["status"]);
    wait::until("the status is the agent's again", admin::SOON, || async {
        let seen = machines.get("one").await?;
        let own = |key: &str| seen.data["status"][key] == again.data["status"][key];
        Ok(match own("restartCount") && own("sshHostKey") {
            true => Seen::Done(()),
            false => Seen::NotYet(format!("{:?}", seen.data["status"])),
        })
    })
    .await?;
    foreign(1).await?;

    machines.delete("one", &DeleteParams::default()).await?;
    server.gone(&machines, "one").await?;
    let left: Vec<_> = std::fs::read_dir(dir.path().join("data/machines"))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| uuid_like(name))
        .collect();
    ensure!(left.is_empty(), "left of deleted machines: {left:?}");
    server.check()
}

fn uuid_like(name: &str) -> bool {
    name.len() == 36 && name.matches('-').count() == 4
}
