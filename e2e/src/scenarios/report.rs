//! What was seen last, for whoever has to find out why.

use std::path::Path;

use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use vmlet_crds::{Image, Kernel, VirtualMachine};

use crate::cx::Cx;

/// Everything that is known of the objects of a scenario. Never fails: what cannot be had is named.
pub async fn gather(cx: &Cx) -> String {
    let mut text = String::new();
    let limit = std::time::Duration::from_secs(20);
    if tokio::time::timeout(limit, objects(cx, &mut text)).await.is_err() {
        text += "the API does not answer\n";
    }
    if let Some(trouble) = cx.world().agent_trouble().await {
        text += &format!("agent: {trouble}\n");
    }
    text += &format!(
        "agent.log ends with:\n{}\n",
        tail(&cx.world().agent_log(), cx.log_start(), 25)
    );
    text
}

async fn objects(cx: &Cx, text: &mut String) {
    for image in list::<Image>(cx, text).await {
        let status = image.status.clone().unwrap_or_default();
        *text += &format!("image {}: {}\n", image.name_any(), conditions(&status.conditions));
    }
    for kernel in list::<Kernel>(cx, text).await {
        let status = kernel.status.clone().unwrap_or_default();
        *text += &format!("kernel {}: {}\n", kernel.name_any(), conditions(&status.conditions));
    }
    for vm in list::<VirtualMachine>(cx, text).await {
        let status = vm.status.clone().unwrap_or_default();
        let uid = vm.uid().unwrap_or_default();
        *text += &format!(
            "virtual machine {} ({uid}), generation {:?}, finalizers {:?}, deleted {:?}\n{}",
            vm.name_any(),
            vm.metadata.generation,
            vm.finalizers(),
            vm.metadata.deletion_timestamp.as_ref().map(|t| t.0.to_string()),
            indented(&conditions(&status.conditions))
        );
        if let Some(end) = &status.last_termination {
            *text += &format!("    last end: {} {:?} {}\n", end.reason, end.exit_code, end.message);
        }
        let console = cx.world().data().join("machines").join(&uid).join("console.log");
        *text += &format!("  console ends with:\n{}\n", indented(&tail(&console, 0, 20)));
    }
    let mut events = list::<Event>(cx, text).await;
    events.sort_by_key(|e| e.event_time.as_ref().map(|t| t.0));
    for event in events {
        *text += &format!(
            "event {} {} {}: {}\n",
            event.type_.unwrap_or_default(),
            event.regarding.and_then(|r| r.name).unwrap_or_default(),
            event.reason.unwrap_or_default(),
            event.note.unwrap_or_default()
        );
    }
}

async fn list<K>(cx: &Cx, text: &mut String) -> Vec<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(cx.client(), cx.namespace());
    match api.list(&ListParams::default()).await {
        Ok(found) => found.items,
        Err(error) => {
            *text += &format!("{}: {error}\n", K::plural(&()));
            Vec::new()
        }
    }
}

fn conditions(conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]) -> String {
    conditions
        .iter()
        .map(|c| format!("{}={}/{} {}", c.type_, c.status, c.reason, c.message))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Writes what is known to the scenario's directory of output.
pub fn keep(cx: &Cx, error: Option<&anyhow::Error>, seen: &str) {
    let result = error.map_or("passed\n".to_owned(), |error| format!("failed: {error:#}\n"));
    let agent = tail(&cx.world().agent_log(), cx.log_start(), usize::MAX);
    for (name, text) in [
        ("result", result.as_str()),
        ("seen", seen),
        ("agent.log", agent.as_str()),
    ] {
        if let Err(error) = std::fs::write(cx.output().join(name), text) {
            eprintln!("e2e: {}: {error}", cx.output().join(name).display());
        }
    }
}

/// The last lines of a file, from a byte on.
pub fn tail(file: &Path, from: usize, lines: usize) -> String {
    let bytes = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Moves a text to the right.
pub fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
