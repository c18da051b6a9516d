//! The embedded API beside kube-apiserver and etcd: the same client, the same calls, the same machine.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams};
use kube::api::{WatchEvent, WatchParams};
use serde_json::json;
use vmlet_e2e::client_without_retries;
use vmlet_e2e::controlplane::{ControlPlane, available};
use vmlet_e2e::wait::{self, Seen};

use crate::report::{Report, Samples, ms};
use crate::standalone::Server;

/// Objects made one after the other.
const ALONE: usize = 200;
/// Objects made by many at once, and how many those are.
const TOGETHER: usize = 800;
const AT_ONCE: usize = 16;
/// Lists of all these objects.
const LISTS: usize = 20;

struct Run {
    name: &'static str,
    samples: Samples,
    rate: f64,
}

/// Runs the calls against both servers, one after the other.
pub async fn measure(vmlet: &Path, report: &mut Report) -> Result<()> {
    report.section("The embedded API beside kube-apiserver and etcd");
    let dir = tempfile::Builder::new().prefix("vmlet-bench.").tempdir()?;
    let server = Server::start(vmlet, dir.path()).await?;
    let ours = calls(&server.client).await.context("embedded API")?;
    drop(server);
    if !available() {
        report.line("kube-apiserver is missing (scripts/controlplane builds it): only the embedded API was measured.");
        let rows: Vec<_> = ours.iter().map(|run| row(run, None)).collect();
        report.table(&HEAD, &rows);
        return Ok(());
    }
    // Both acknowledge only what is safe on disk.
    let real = ControlPlane::start_durable().await?;
    let theirs = calls(&client_without_retries(real.kubeconfig()).await?)
        .await
        .context("kube-apiserver")?;
    let rows: Vec<_> = ours.iter().zip(&theirs).map(|(a, b)| row(a, Some(b))).collect();
    report.table(&HEAD, &rows);
    Ok(())
}

const HEAD: [&str; 7] = [
    "call",
    "embedded: a second",
    "P50 ms",
    "P95 ms",
    "real: a second",
    "P50 ms",
    "P95 ms",
];

fn row(ours: &Run, theirs: Option<&Run>) -> Vec<String> {
    let cells = |run: &Run| {
        [
            format!("{:.0}", run.rate),
            ms(run.samples.quantile(0.5)),
            ms(run.samples.quantile(0.95)),
        ]
    };
    let none = || ["-", "-", "-"].map(str::to_owned);
    std::iter::once(format!("{} (n={})", ours.name, ours.samples.len()))
        .chain(cells(ours))
        .chain(theirs.map_or_else(none, cells))
        .collect()
}

fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("bench.example.org", "v1", "Item"), "items")
}

fn item(name: &str) -> DynamicObject {
    // About the size of a VirtualMachine as users write it.
    let env: Vec<_> = (0..10)
        .map(|at| json!({"name": format!("VARIABLE_{at}"), "value": "a value of some length"}))
        .collect();
    DynamicObject::new(name, &resource()).data(json!({"spec": {"size": 3, "owner": "bench", "env": env}}))
}

async fn calls(client: &Client) -> Result<Vec<Run>> {
    define(client).await?;
    let items: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource());
    let create = |name: String| {
        let items = items.clone();
        async move {
            items.create(&PostParams::default(), &item(&name)).await?;
            anyhow::Ok(())
        }
    };
    // What is done for the first time (a connection, a cache) is not what is asked about.
    for at in 0..20 {
        create(format!("first-{at}")).await?;
    }
    let mut runs = vec![
        timed("create, one at a time", ALONE, 1, |at| create(format!("alone-{at}"))).await?,
        timed("create, 16 at once", TOGETHER, AT_ONCE, |at| {
            create(format!("together-{at}"))
        })
        .await?,
    ];
    runs.push(
        timed("patch of status (merge)", ALONE, 1, |at| {
            let items = items.clone();
            async move {
                let patch = json!({"status": {"observedGeneration": 1, "conditions": [
                    {"type": "Ready", "status": "True", "reason": "Bench", "message": format!("patch {at}"),
                     "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
                let name = format!("alone-{at}");
                items
                    .patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
                    .await?;
                Ok(())
            }
        })
        .await?,
    );
    runs.push(
        timed("apply of status (server-side)", ALONE, 1, |at| {
            let items = items.clone();
            async move {
                let patch =
                    json!({"apiVersion": "bench.example.org/v1", "kind": "Item", "status": {"observedGeneration": 2}});
                let name = format!("alone-{at}");
                items
                    .patch_status(&name, &PatchParams::apply("bench").force(), &Patch::Apply(patch))
                    .await?;
                Ok(())
            }
        })
        .await?,
    );
    runs.push(
        timed("get", ALONE, 1, |at| {
            let items = items.clone();
            async move {
                items.get(&format!("alone-{at}")).await?;
                Ok(())
            }
        })
        .await?,
    );
    runs.push(
        timed("list of 1020", LISTS, 1, |_| {
            let items = items.clone();
            async move {
                let seen = items.list(&ListParams::default()).await?.items.len();
                anyhow::ensure!(seen == 20 + ALONE + TOGETHER, "the list has {seen} objects");
                Ok(())
            }
        })
        .await?,
    );
    runs.push(watched(&items).await?);
    Ok(runs)
}

/// Calls `call` for 0..n, so many at once.
async fn timed<F, Fut>(name: &'static str, n: usize, at_once: usize, call: F) -> Result<Run>
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let begun = Instant::now();
    let mut samples = Samples::default();
    let mut done = futures::stream::iter(0..n)
        .map(|at| {
            let call = call(at);
            async move {
                let begun = Instant::now();
                call.await.map(|()| begun.elapsed())
            }
        })
        .buffer_unordered(at_once);
    while let Some(took) = done.try_next().await? {
        samples.add(took);
    }
    let rate = n as f64 / begun.elapsed().as_secs_f64();
    Ok(Run { name, samples, rate })
}

/// From the send of a create to its event in a watch.
async fn watched(items: &Api<DynamicObject>) -> Result<Run> {
    let version = items
        .list(&ListParams::default().limit(1))
        .await?
        .metadata
        .resource_version
        .unwrap_or_default();
    let mut events = items.watch(&WatchParams::default(), &version).await?.boxed();
    let mut samples = Samples::default();
    let begun = Instant::now();
    for at in 0..ALONE {
        let name = format!("watched-{at}");
        let sent = Instant::now();
        let new = item(&name);
        let params = PostParams::default();
        let seen = async {
            while let Some(event) = events.try_next().await? {
                if let WatchEvent::Added(object) = event
                    && object.metadata.name.as_deref() == Some(&name)
                {
                    return Ok(sent.elapsed());
                }
            }
            anyhow::bail!("the watch ended")
        };
        let created = async { items.create(&params, &new).await.map_err(anyhow::Error::from) };
        let both = async { tokio::try_join!(seen, created) };
        let (took, _) = tokio::time::timeout(Duration::from_secs(30), both)
            .await
            .with_context(|| format!("{name} was not seen in the watch"))??;
        samples.add(took);
    }
    let rate = ALONE as f64 / begun.elapsed().as_secs_f64();
    Ok(Run {
        name: "create to its event in a watch",
        samples,
        rate,
    })
}

/// Defines the kind that is measured with and waits until it is served.
async fn define(client: &Client) -> Result<()> {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "items.bench.example.org"},
        "spec": {
            "group": "bench.example.org", "scope": "Namespaced",
            "names": {"plural": "items", "singular": "item", "kind": "Item", "listKind": "ItemList"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "size": {"type": "integer", "minimum": 1},
                        "owner": {"type": "string", "maxLength": 20},
                        "env": {"type": "array", "maxItems": 64, "items": {"type": "object", "properties": {
                            "name": {"type": "string"}, "value": {"type": "string"}}}},
                    }},
                    "status": open,
                }}},
            }],
        },
    });
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions
        .create(&PostParams::default(), &serde_json::from_value(definition)?)
        .await?;
    let items: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource());
    wait::until("items are served", Duration::from_secs(60), || async {
        items.list(&ListParams::default()).await?;
        Ok(Seen::Done(()))
    })
    .await
}
