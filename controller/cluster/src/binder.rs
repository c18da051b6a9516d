//! A VM without a node gets one. Which one is pure: the Ready node with the most memory left.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::{Action, Config as ControllerConfig};
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::Config as WatchConfig;
use kube::runtime::{Controller, PredicateConfig, WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use vmlet_crds::{RunStrategy, VMNode, VirtualMachine, is_another_object, quantity_value, status_patch};

use crate::condition::{says, unseen};
use crate::nodes::LostNodes;
use crate::{FIELD_MANAGER, WatchEnded};

/// How soon a VM that found no node is looked at again.
pub(crate) const RETRY: Duration = Duration::from_secs(5);

/// A node as the binder sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Whether its agent can boot VMs.
    pub ready: bool,
    /// Memory for VMs in bytes.
    pub allocatable: u64,
    /// Memory of the VMs bound to it in bytes.
    pub used: u64,
}

/// Chooses the Ready node with the most memory left, the first by name among equals.
///
/// # Errors
/// Why no node will do, for a person.
pub fn choose(candidates: &[Candidate], memory: u64) -> Result<&Candidate, String> {
    let free = |c: &Candidate| c.allocatable.saturating_sub(c.used);
    if candidates.is_empty() {
        return Err("no VMNode exists: no agent has registered its node yet".to_owned());
    }
    let ready: Vec<&Candidate> = candidates.iter().filter(|c| c.ready).collect();
    if ready.is_empty() {
        return Err(format!(
            "none of {} nodes is Ready: see `kubectl get vmnodes`",
            candidates.len()
        ));
    }
    ready
        .iter()
        .filter(|c| free(c) >= memory)
        .max_by(|a, b| free(a).cmp(&free(b)).then_with(|| b.name.cmp(&a.name)))
        .copied()
        .ok_or_else(|| {
            let most = ready.iter().map(|c| free(c)).max().unwrap_or(0);
            format!(
                "{}Mi of memory are asked for, and the emptiest of {} Ready nodes has {}Mi left",
                memory >> 20,
                ready.len(),
                most >> 20
            )
        })
}

/// Bindings made here that the cache of VMs does not show yet, by uid.
#[derive(Debug, Default)]
struct Assumed(HashMap<String, (String, u64)>);

impl Assumed {
    /// Memory of the VMs bound to each node, in bytes. What the cache shows is assumed no longer.
    fn used<'a>(&mut self, vms: impl Iterator<Item = &'a VirtualMachine>) -> BTreeMap<String, u64> {
        let mut used: BTreeMap<String, u64> = BTreeMap::new();
        let mut unseen = HashMap::new();
        for vm in vms {
            let assumed = vm.metadata.uid.as_ref().and_then(|uid| self.0.remove_entry(uid));
            let memory = quantity_value(&vm.spec.memory.size).unwrap_or(0);
            match (&vm.spec.node_name, assumed) {
                (Some(_), _) if vm.spec.run_strategy == RunStrategy::Halted => {}
                (Some(node), _) => *used.entry(node.clone()).or_default() += memory,
                (None, Some((uid, (node, memory)))) => {
                    *used.entry(node.clone()).or_default() += memory;
                    unseen.insert(uid, (node, memory));
                }
                (None, None) => {}
            }
        }
        self.0 = unseen;
        used
    }
}

struct Context {
    client: Client,
    lost: LostNodes,
    nodes: Store<VMNode>,
    vms: Store<VirtualMachine>,
    assumed: Mutex<Assumed>,
}

/// Binds VMs until `shutdown`.
pub(crate) async fn run(client: Client, lost: LostNodes, shutdown: CancellationToken) -> Result<(), WatchEnded> {
    let controller = Controller::new(Api::<VirtualMachine>::all(client.clone()), WatchConfig::default());
    let (nodes, writer) = reflector::store();
    let changed = watcher(Api::<VMNode>::all(client.clone()), WatchConfig::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects()
        .predicate_filter(what_counts, PredicateConfig::default())
        .inspect_err(|error| tracing::warn!(%error, "the watch on nodes failed; tried again"))
        .filter_map(|node| async { node.ok().map(drop) });
    let cx = Arc::new(Context {
        client,
        lost,
        nodes,
        vms: controller.store(),
        assumed: Mutex::default(),
    });
    // One at a time: each choice must see the one before.
    let controller = controller
        .with_config(ControllerConfig::default().concurrency(1))
        // Those that found none go to a node as soon as it is there.
        .reconcile_all_on(changed)
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(
            bind,
            |_, error, _| {
                tracing::warn!(
                    error = vmlet_crds::in_words(error),
                    "a virtual machine could not be bound; tried again"
                );
                Action::requeue(RETRY)
            },
            cx,
        );
    controller.for_each(|_| async {}).await;
    if shutdown.is_cancelled() {
        Ok(())
    } else {
        Err(WatchEnded("virtual machines"))
    }
}

async fn bind(vm: Arc<VirtualMachine>, cx: Arc<Context>) -> Result<Action, kube::Error> {
    if vm.spec.node_name.is_some() || vm.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let api: Api<VirtualMachine> = Api::namespaced(cx.client.clone(), &vm.namespace().unwrap_or_default());
    let memory = quantity_value(&vm.spec.memory.size).unwrap_or(0);
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    if cx.nodes.wait_until_ready().await.is_err() {
        return Ok(Action::requeue(RETRY));
    }
    match choose(&candidates(&cx), memory) {
        Ok(node) => {
            let patch = json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": vm.resource_version()},
                {"op": "add", "path": "/spec/nodeName", "value": node.name},
            ]);
            let patch: json_patch::Patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
            match api.patch(&vm.name_any(), &params, &Patch::<()>::Json(patch)).await {
                Ok(_) => {
                    let uid = vm.uid().unwrap_or_default();
                    lock(&cx.assumed).0.insert(uid, (node.name.clone(), memory));
                    Ok(Action::await_change())
                }
                // Changed or gone meanwhile: the watch brings the new one.
                Err(kube::Error::Api(status))
                    if status.is_not_found() || status.is_conflict() || status.is_invalid() =>
                {
                    Ok(Action::requeue(Duration::from_millis(200)))
                }
                Err(error) => Err(error),
            }
        }
        Err(message) => {
            let status = unseen(&vm, false, "NoNode", &message);
            if says(&vm, &status) {
                return Ok(Action::requeue(RETRY));
            }
            let patch = status_patch(&vm.uid().unwrap_or_default(), &status).map_err(kube::Error::SerdeError)?;
            match api
                .patch_status(&vm.name_any(), &params, &Patch::<()>::Json(patch))
                .await
            {
                Err(error) if !is_another_object(&error) => return Err(error),
                Ok(_) | Err(_) => {}
            }
            Ok(Action::requeue(RETRY))
        }
    }
}

fn candidates(cx: &Context) -> Vec<Candidate> {
    let vms = cx.vms.state();
    let used = lock(&cx.assumed).used(vms.iter().map(AsRef::as_ref));
    let lost = lock(&cx.lost).clone();
    let mut candidates: Vec<Candidate> = cx.nodes.state().iter().map(|node| candidate(node)).collect();
    for candidate in &mut candidates {
        candidate.ready &= !lost.contains(&candidate.name);
        candidate.used = used.get(&candidate.name).copied().unwrap_or(0);
    }
    candidates
}

/// What of a node changes a choice. How many machines it runs does not: those are counted here.
fn what_counts(node: &VMNode) -> Option<u64> {
    let mut hasher = std::hash::DefaultHasher::new();
    candidate(node).hash(&mut hasher);
    Some(hasher.finish())
}

/// A node by what it says of itself.
fn candidate(node: &VMNode) -> Candidate {
    let status = node.status.as_ref();
    let memory = status.and_then(|status| status.allocatable.get("memory"));
    Candidate {
        name: node.name_any(),
        ready: status.is_some_and(|s| s.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")),
        allocatable: memory.and_then(quantity_value).unwrap_or(0),
        used: 0,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use vmlet_crds::VirtualMachineSpec;

    use super::*;

    fn vm(uid: &str, node: Option<&str>) -> VirtualMachine {
        let mut vm = VirtualMachine::new(uid, VirtualMachineSpec::default());
        vm.metadata.uid = Some(uid.to_owned());
        vm.spec.node_name = node.map(str::to_owned);
        vm.spec.memory.size = Quantity("1Gi".to_owned());
        vm
    }

    #[test]
    fn a_binding_counts_from_the_moment_it_is_made_and_once() {
        let mut assumed = Assumed::default();
        assumed.0.insert("b".to_owned(), ("n".to_owned(), 1 << 30));
        assumed.0.insert("gone".to_owned(), ("n".to_owned(), 1 << 30));
        let mut used = |vms: &[VirtualMachine]| assumed.used(vms.iter()).get("n").map(|bytes| bytes >> 30);
        let mut halted = vm("h", Some("n"));
        halted.spec.run_strategy = RunStrategy::Halted;
        let mut vms = [vm("a", Some("n")), vm("b", None), vm("c", None), halted];
        assert_eq!(used(&vms), Some(2));
        assert_eq!(used(&vms), Some(2));
        vms[1].spec.node_name = Some("n".to_owned());
        assert_eq!(used(&vms), Some(2));
        vms[1].spec.node_name = None;
        assert_eq!(used(&vms), Some(1), "what was seen is assumed no longer");
    }

    fn node(name: &str, ready: bool, allocatable: u64, used: u64) -> Candidate {
        Candidate {
            name: name.to_owned(),
            ready,
            allocatable: allocatable << 30,
            used: used << 30,
        }
    }

    #[test]
    fn the_ready_node_with_the_most_memory_left_is_chosen() {
        let nodes = [node("a", true, 8, 7), node("b", true, 4, 1), node("c", false, 64, 0)];
        assert_eq!(choose(&nodes, 1 << 30).map(|c| c.name.as_str()), Ok("b"));
    }

    #[test]
    fn equal_nodes_are_taken_by_name() {
        let nodes = [node("b", true, 4, 1), node("a", true, 4, 1)];
        assert_eq!(choose(&nodes, 1 << 30).map(|c| c.name.as_str()), Ok("a"));
    }

    #[test]
    fn a_refusal_says_what_is_missing() {
        assert!(choose(&[], 1).is_err_and(|m| m.contains("no VMNode")));
        assert!(choose(&[node("a", false, 8, 0)], 1).is_err_and(|m| m.contains("Ready")));
        assert!(choose(&[node("a", true, 2, 1)], 2 << 30).is_err_and(|m| m.contains("2048Mi") && m.contains("1024Mi")));
    }
}
