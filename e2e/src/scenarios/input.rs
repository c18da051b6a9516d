//! What users and the world get wrong.

use std::net::TcpListener;

use anyhow::{Context as _, Result, ensure};
use kube::api::{ApiResource, DynamicObject, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use vmlet_crds::VirtualMachine;
use vmlet_e2e::registry::Registry;

use crate::cx::{Cx, script, service};
use crate::vm;

/// A broken manifest is refused with the field's name, and leaves nothing.
pub async fn invalid_spec(cx: Cx) -> Result<()> {
    let resource = ApiResource::erase::<VirtualMachine>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(cx.client(), cx.namespace(), &resource);
    let with = |change: Value| {
        let mut spec = script("guest", "exit 0");
        if let (Some(spec), Some(change)) = (spec.as_object_mut(), change.as_object()) {
            spec.extend(change.clone());
        }
        spec
    };
    let port = |name: &str, guest: i32| json!({"name": name, "guestPort": guest, "hostPort": 4000});
    for (field, spec) in [
        ("cpu.count", with(json!({"cpu": {"count": 0}}))),
        ("cpu.count", with(json!({"cpu": {"count": -1}}))),
        ("memory.size", with(json!({"memory": {"size": "1Mi"}}))),
        ("memory.size", with(json!({"memory": {"size": "much"}}))),
        ("imageRef", json!({"kernelRef": {"name": "kernel"}})),
        ("runStrategy", with(json!({"runStrategy": "Sometimes"}))),
        ("rootDisk.size", with(json!({"rootDisk": {"size": "2Ti"}}))),
        (
            "ports",
            with(json!({"interfaces": [{"name": "m", "nat": {"ports": [port("a", 1), port("b", 2)]}}]})),
        ),
    ] {
        let object = DynamicObject::new("broken", &resource).data(json!({"spec": spec.clone()}));
        match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(status)) if status.code == 422 => {
                ensure!(
                    status.message.contains(field),
                    "the refusal does not name {field}: {}",
                    status.message
                );
            }
            other => anyhow::bail!("{field}: not refused as invalid: {other:?}\n{spec}"),
        }
    }
    let left = api.list(&ListParams::default()).await?.items;
    ensure!(left.is_empty(), "a refused object is there: {left:?}");
    Ok(())
}

/// Bad and missing references are told with cause, and the objects go when asked.
pub async fn bad_reference(cx: Cx) -> Result<()> {
    let missing = format!("{}/{}/nothing:here", cx.world().registry.address(), cx.namespace());
    for (name, reference, word, reason) in [
        ("missing", missing.as_str(), "nothing", "NotFound"),
        ("malformed", "Upper Case//:x", "Upper", "BadReference"),
    ] {
        // Refused at once is as good as told by a condition.
        if let Err(error) = cx.image(name, reference).await {
            ensure!(
                format!("{error:#}").contains("reference"),
                "refused, but not for its reference: {error:#}"
            );
            continue;
        }
        let created = cx.machine(name, script(name, "exit 0")).await?;
        let seen = cx
            .until(name, "its image is refused", |vm| {
                Ok(vm::condition(vm, "ImageReady").1 == reason)
            })
            .await?;
        let (_, _, message) = vm::condition(&seen, "ImageReady");
        ensure!(
            message.contains(name) && message.contains(word),
            "the message does not say what: {message}"
        );
        ensure!(
            vm::condition(&seen, "Ready").1 == reason,
            "Ready does not say why: {}",
            vm::words(&seen)
        );
        cx.event(name, reason).await?;
        cx.delete(name).await?;
        cx.gone(name).await?;
        cx.nothing_of(&created.uid().context("no uid")?)?;
    }
    // No Image at all.
    cx.machine("orphan", script("nowhere", "exit 0")).await?;
    cx.until("orphan", "its image is missed", |vm| {
        Ok(vm::condition(vm, "ImageReady").1 == "ImageNotFound")
    })
    .await?;
    Ok(())
}

/// Bytes that are not what their digest says publish nothing.
pub async fn wrong_digest(cx: Cx) -> Result<()> {
    let pushed = cx.push_guest("image", 1 << 20).await?;
    cx.world().registry.damage(&pushed.payload)?;
    cx.image("damaged", &pushed.reference).await?;
    cx.machine("unlucky", script("damaged", "exit 0")).await?;
    let seen = cx
        .until("unlucky", "its image is refused", |vm| {
            Ok(vm::condition(vm, "ImageReady").1 == "WrongDigest")
        })
        .await?;
    let (_, _, message) = vm::condition(&seen, "ImageReady");
    ensure!(
        message.contains("damaged"),
        "the message does not name the image: {message}"
    );
    cx.event("unlucky", "WrongDigest").await?;
    ensure!(
        cx.published("images", &pushed.repository)?.is_none(),
        "a damaged image was published"
    );
    cx.delete("unlucky").await?;
    cx.gone("unlucky").await
}

/// A taken port is a condition, and is had once it is free.
pub async fn port_in_use(cx: Cx) -> Result<()> {
    cx.guest().await?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let mut spec = service("guest", "sleep 86400");
    spec["interfaces"] =
        json!([{"name": "main", "nat": {"ports": [{"name": "web", "guestPort": 80, "hostPort": port}]}}]);
    cx.machine("served", spec).await?;
    let seen = cx
        .until("served", "its port is refused and it runs all the same", |vm| {
            Ok(vm::condition(vm, "NetworkReady").1 == "PortUnavailable" && vm::is(vm, "GuestReady"))
        })
        .await?;
    let (_, _, message) = vm::condition(&seen, "NetworkReady");
    ensure!(
        message.contains("web") && message.contains(&port.to_string()),
        "which port is not told: {message}"
    );
    ensure!(!vm::is(&seen, "Ready"), "it is Ready without its port");
    cx.event("served", "PortUnavailable").await?;
    drop(taken);
    let served = cx.ready("served").await?;
    ensure!(
        vm::boot_id(&served) == vm::boot_id(&seen),
        "the machine was restarted for a port"
    );
    Ok(())
}

/// A pull that fails is tried again.
pub async fn registry_down_then_up(cx: Cx) -> Result<()> {
    let mut registry = Registry::start().await?;
    let reference = format!("{}/guest:latest", registry.address());
    cx.world()
        .guest
        .clone()
        .made_unique(cx.namespace())?
        .push(&reference)
        .await?;
    registry.stop();
    cx.image("far", &reference).await?;
    cx.machine("patient", script("far", "exit 0")).await?;
    cx.until("patient", "its image cannot be had", |vm| {
        Ok(vm::condition(vm, "ImageReady").1 == "Unavailable")
    })
    .await?;
    registry.resume().await?;
    cx.until("patient", "it has completed", |vm| vm::completed(vm, 0))
        .await?;
    Ok(())
}
