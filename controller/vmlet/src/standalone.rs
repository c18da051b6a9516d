//! `vmlet standalone`: the API, the resolver, the binder and the agent in one process.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;
use vmlet_apiserver::ApiServer;

use crate::admin::Admin;
use crate::cli::Standalone;
use crate::node;

/// Namespace of the node's Lease.
const NAMESPACE: &str = "kube-system";
/// How long the process waits for its parts at the end.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Runs until `shutdown`. VMs run on.
pub async fn run(args: Standalone, shutdown: CancellationToken) -> Result<()> {
    if !args.listen.ip().is_loopback() {
        tracing::warn!(listen = %args.listen, "the API listens beyond this machine; whoever has the token of its kubeconfig controls its VMs");
    }
    let admin = Admin::start(args.node.admin_listen, &shutdown).await?;
    let node = node::open(&args.node, &admin).await?;
    let api = ApiServer::open(vmlet_apiserver::Config::new(args.node.data_dir.join("api")))
        .await
        .context("embedded API")?;
    let client = Client::new(api.service(), "default");
    apply_crds(&client).await?;

    // Order matters: what is served must be there before someone can ask for it.
    let bound = api.serve(args.listen).await.context(
        "the API cannot be served there (is another one running? --listen takes another address, with port 0 a free one)",
    )?;
    if let Some(path) = &args.write_kubeconfig {
        api.write_kubeconfig(bound, path)
            .with_context(|| format!("--write-kubeconfig {}", path.display()))?;
        tracing::info!(kubeconfig = %path.display(), api = %bound, "the API is served");
    } else {
        tracing::info!(api = %bound, "the API is served; give --write-kubeconfig FILE to use it with kubectl");
    }

    let cluster = vmlet_cluster::run(
        client.clone(),
        NAMESPACE,
        node.artifacts.clone(),
        node.wakes.images,
        node.wakes.kernels,
        shutdown.clone(),
    );
    let agent = node::run_agent(
        client,
        &args.node,
        admin,
        NAMESPACE,
        node.artifacts,
        node.machines,
        node.wakes.vms,
        node.wakes.machines,
        shutdown.clone(),
    );
    let result = tokio::try_join!(async { cluster.await.map_err(anyhow::Error::from) }, agent).map(|_| ());
    shutdown.cancel();
    if tokio::time::timeout(SHUTDOWN, api.close()).await.is_err() {
        tracing::warn!("the API did not close in time; nothing that it acknowledged is lost");
    }
    result
}

/// Applies vmlet's own CRDs and waits until they are served.
async fn apply_crds(client: &Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in vmlet_crds::all() {
        let name = crd.name_any();
        api.patch(
            &name,
            &PatchParams::apply("vmlet-standalone").force(),
            &Patch::Apply(&crd),
        )
        .await
        .with_context(|| format!("CRD {name}"))?;
        let established = api
            .get(&name)
            .await?
            .status
            .and_then(|s| s.conditions)
            .unwrap_or_default();
        if !established
            .iter()
            .any(|c| c.type_ == "Established" && c.status == "True")
        {
            bail!("CRD {name} is not served: {established:?}");
        }
    }
    Ok(())
}
