//! What is decided once per cluster: a tag becomes one digest for all nodes, and a VM gets its node.
//!
//! Nothing here touches a host. On a cluster it runs in the Deployment `vmlet-controller`; standalone it
//! runs in the same process as the agent.

pub mod binder;
mod condition;
#[cfg(test)]
#[path = "../../node/src/fake_api.rs"]
#[allow(dead_code, reason = "shared with the tests of vmlet-node, which look at events too")]
mod fake_api;
pub mod findings;
pub mod leader;
pub mod nodes;
pub mod resolver;
#[cfg(test)]
mod tests;

use futures::future::{FutureExt as _, try_join5};
use kube::Client;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vmlet_artifacts::facade::Artifacts;
use vmlet_crds::{Image, Kernel};

use crate::resolver::Wakes;

/// Field manager of everything that is applied here.
pub const FIELD_MANAGER: &str = "vmlet-controller";

/// Objects of which something new is known that may wait for their resolver; the watch of VMs waits beyond that.
const NEWS: usize = 64;

/// A stream ended that only a shutdown should end.
#[derive(Debug, thiserror::Error)]
#[error("the watch on {0} ended")]
pub struct WatchEnded(pub &'static str);

/// Runs the resolver, the binder and the watch over nodes until `shutdown`. `namespace` has the nodes' Leases.
/// `image_wakes` and `kernel_wakes` carry uids of
/// what was resolved, or could not be.
///
/// # Errors
/// When a watch ends.
pub async fn run(
    client: Client,
    namespace: &str,
    artifacts: Artifacts,
    image_wakes: mpsc::Receiver<String>,
    kernel_wakes: mpsc::Receiver<String>,
    shutdown: CancellationToken,
) -> Result<(), WatchEnded> {
    let lost = nodes::LostNodes::default();
    let findings = findings::Findings::default();
    let (image_news, images_found) = mpsc::channel(NEWS);
    let (kernel_news, kernels_found) = mpsc::channel(NEWS);
    let images = Wakes {
        uids: image_wakes,
        found: images_found,
    };
    let kernels = Wakes {
        uids: kernel_wakes,
        found: kernels_found,
    };
    try_join5(
        resolver::run::<Image>(
            client.clone(),
            artifacts.clone(),
            findings.clone(),
            images,
            shutdown.clone(),
        ),
        resolver::run::<Kernel>(client.clone(), artifacts, findings.clone(), kernels, shutdown.clone()),
        findings::run(client.clone(), findings, image_news, kernel_news, shutdown.clone()).map(Ok),
        binder::run(client.clone(), lost.clone(), shutdown.clone()),
        nodes::run(client, namespace.to_owned(), lost, shutdown).map(Ok),
    )
    .await
    .map(|_| ())
}
