//! The agent describes its node: VMNode, and a Lease beside it for the heartbeat. Images whose
//! pullPolicy is Eager are kept present from here too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use vmlet_artifacts::types::{ArtefactKind, ImageWant, Interest};
use vmlet_crds::{CachedArtifact, GROUP, Image, PullPolicy, VERSION, VMNode, VMNodeStatus, VmmFound};

use crate::agent::NodeFacts;
use crate::dereference::source;
use crate::reconcile::{Context, FIELD_MANAGER};
use crate::status::{alive, time};

/// How often the heartbeat is renewed.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// After this long without a heartbeat the node counts as lost, in seconds.
const LEASE_SECONDS: i32 = 40;
/// The same as a duration.
pub const LOST: Duration = Duration::from_secs(LEASE_SECONDS as u64);
/// Most artefacts that VMNode lists.
const MAX_CACHED: usize = 50;

/// Makes the VMNode exist and writes its status and its Lease.
///
/// # Errors
/// When the API refuses or does not answer; the next heartbeat tries again.
pub async fn heartbeat(cx: &Context, facts: &NodeFacts, conditions: &mut Vec<Condition>) -> kube::Result<()> {
    let api: Api<VMNode> = Api::all(cx.client.clone());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let api_version = format!("{GROUP}/{VERSION}");
    // With a Node of the same name it goes when that goes; without one a person deletes it.
    let owners: Vec<_> = match Api::<Node>::all(cx.client.clone()).get_opt(&cx.node).await {
        Ok(node) => node.and_then(|n| n.owner_ref(&())).into_iter().collect(),
        Err(error) => {
            tracing::debug!(%error, "whether there is a Node cannot be told");
            Vec::new()
        }
    };
    let meta = json!({"apiVersion": api_version, "kind": "VMNode", "metadata": {"name": cx.node, "labels": facts.labels, "ownerReferences": owners}, "spec": {}});
    let node = api.patch(&cx.node, &params, &Patch::Apply(meta)).await?;
    *cx.node_object.lock().unwrap_or_else(PoisonError::into_inner) = Some(node.object_ref(&()));

    let status = status(cx, facts, conditions).await;
    *conditions = status.conditions.clone();
    let body = json!({"apiVersion": api_version, "kind": "VMNode", "metadata": {"name": cx.node}, "status": status});
    api.patch_status(&cx.node, &params, &Patch::Apply(body)).await?;

    let leases: Api<Lease> = Api::namespaced(cx.client.clone(), &facts.namespace);
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": format!("vmlet-{}", cx.node)},
        "spec": {"holderIdentity": cx.node, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": MicroTime(jiff::Timestamp::now())},
    });
    leases
        .patch(&format!("vmlet-{}", cx.node), &params, &Patch::Apply(lease))
        .await?;
    Ok(())
}

async fn status(cx: &Context, facts: &NodeFacts, before: &[Condition]) -> VMNodeStatus {
    let running = cx
        .machines
        .list()
        .iter()
        .filter_map(|uid| cx.machines.observe(uid))
        .filter(|o| alive(&o.phase))
        .count();
    cx.metrics.set_running(i64::try_from(running).unwrap_or(i64::MAX));
    let mut cached = cx.dereferencer.artifacts.inventory().await;
    cached.sort_by_key(|c| std::cmp::Reverse(c.last_used));
    let disk = cx.disk.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let amounts = |memory: u64| {
        BTreeMap::from([
            ("cpu".to_owned(), Quantity(facts.cpus.to_string())),
            ("memory".to_owned(), Quantity(format!("{}Mi", memory >> 20))),
        ])
    };
    VMNodeStatus {
        conditions: facts.conditions.iter().chain(&disk).map(|c| dated(c, before)).collect(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        vmms: facts
            .vmms
            .iter()
            .map(|(kind, version)| VmmFound {
                type_: kind.clone(),
                version: version.clone(),
            })
            .collect(),
        accelerator: facts.accelerator.clone(),
        capacity: amounts(facts.memory_bytes),
        allocatable: amounts(facts.allocatable_bytes),
        running_machines: i32::try_from(running).unwrap_or(i32::MAX),
        cached: cached
            .into_iter()
            .take(MAX_CACHED)
            .map(|c| CachedArtifact {
                kind: match c.kind {
                    ArtefactKind::Image => "Image".to_owned(),
                    ArtefactKind::Kernel => "Kernel".to_owned(),
                },
                digest: c.digest,
                size_bytes: i64::try_from(c.allocated_bytes).unwrap_or(i64::MAX),
                users: i32::try_from(c.users.len()).unwrap_or(i32::MAX),
                last_used_time: Some(to_the_hour(c.last_used)),
            })
            .collect(),
    }
}

fn to_the_hour(at: SystemTime) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    time(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds - seconds % 3600))
}

fn dated(fact: &crate::agent::NodeCondition, before: &[Condition]) -> Condition {
    let status = if fact.holds { "True" } else { "False" };
    let last_transition_time = match before.iter().find(|c| c.type_ == fact.type_ && c.status == status) {
        Some(before) => before.last_transition_time.clone(),
        None => time(SystemTime::now()),
    };
    Condition {
        type_: fact.type_.clone(),
        status: status.to_owned(),
        reason: fact.reason.clone(),
        message: fact.message.clone(),
        observed_generation: None,
        last_transition_time,
    }
}

/// What the interests of eager images begin with; the Image's uid follows.
const EAGER: &str = "eager/";

/// Of those who pinned something or asked for it: the eager images that are not there any more.
fn let_go(who: impl IntoIterator<Item = Interest>, there: &BTreeSet<String>) -> BTreeSet<Interest> {
    who.into_iter()
        .filter(|who| who.0.strip_prefix(EAGER).is_some_and(|uid| !there.contains(uid)))
        .collect()
}

/// Keeps present what is to be pulled eagerly on this node. `asked` is who was asked for so far by this process: a pull
/// that is under way has pinned nothing yet, and nobody else would end it.
///
/// # Errors
/// When the API refuses or does not answer.
pub async fn pull_eagerly(cx: &Context, facts: &NodeFacts, asked: &mut BTreeSet<Interest>) -> kube::Result<()> {
    let images = Api::<Image>::all(cx.client.clone())
        .list(&ListParams::default())
        .await?;
    let there: BTreeSet<String> = images.iter().filter_map(ResourceExt::uid).collect();
    let pinners = cx.dereferencer.artifacts.pinners().await;
    for who in let_go(pinners.into_iter().chain(asked.iter().cloned()), &there) {
        match cx.dereferencer.artifacts.unpin(&who).await {
            Ok(()) => drop(asked.remove(&who)),
            Err(error) => tracing::warn!(who = who.0, %error, "an image that is gone could not be let go"),
        }
    }
    for image in images {
        let wanted = image.spec.pull_policy == PullPolicy::Eager
            && image
                .spec
                .node_selector
                .iter()
                .all(|(k, v)| facts.labels.get(k) == Some(v));
        let Some(uid) = image.uid() else { continue };
        let who = Interest(format!("{EAGER}{uid}"));
        if !wanted || image.metadata.deletion_timestamp.is_some() {
            if let Err(error) = cx.dereferencer.artifacts.unpin(&who).await {
                tracing::warn!(image = %image.name_any(), %error, "an image that is no longer eager could not be let go");
            }
            continue;
        }
        let source = source(&image.spec.source);
        let digest = image
            .status
            .as_ref()
            .and_then(|s| s.resolved.as_ref())
            .map(|r| r.digest.clone());
        if digest.is_none() && matches!(source, vmlet_artifacts::types::Source::Oci { .. }) {
            continue;
        }
        let credentials = cx.dereferencer.image_credentials(&image).await?;
        asked.insert(who.clone());
        cx.dereferencer
            .artifacts
            .ensure_image(
                &who,
                ImageWant {
                    source,
                    digest,
                    credentials,
                },
            )
            .await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eager_image_that_was_deleted_is_let_go_and_nothing_else() {
        let pins = ["eager/a", "eager/b", "vm/b"].map(|p| Interest(p.to_owned()));
        let there = BTreeSet::from(["a".to_owned()]);
        assert_eq!(let_go(pins, &there), BTreeSet::from([Interest("eager/b".to_owned())]));
    }
}
