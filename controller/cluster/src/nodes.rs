//! Lost nodes: whose agent renews its Lease no more. What runs there is unknown, never dead: `Ready` of its VMs
//! becomes Unknown, and nothing is started elsewhere. When the VMNode is gone too, VMs that are being
//! deleted lose the finalizer that nobody else would remove.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vmlet_crds::{FINALIZER, VMNode, VirtualMachine, is_another_object};

use crate::FIELD_MANAGER;
use crate::condition::condition;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// How long an agent may be silent whose Lease does not say so, in seconds.
const DEADLINE: i32 = 40;

/// The nodes that are lost now, shared with the binder.
pub type LostNodes = Arc<Mutex<BTreeSet<String>>>;

/// Remembers when each Lease last changed, by this process's own clock: clocks of nodes need not agree.
#[derive(Default)]
struct Watchman {
    seen: BTreeMap<String, (Option<MicroTime>, Instant)>,
}

impl Watchman {
    /// The lost ones among `nodes`, from name to time and duration of the last renewal.
    fn lost(&mut self, nodes: BTreeMap<String, Option<(MicroTime, i32)>>, now: Instant) -> BTreeSet<String> {
        self.seen.retain(|name, _| nodes.contains_key(name));
        let mut lost = BTreeSet::new();
        for (name, lease) in nodes {
            let (renewed, seconds) = match lease {
                Some((at, seconds)) => (Some(at), seconds),
                None => (None, DEADLINE),
            };
            let entry = self.seen.entry(name.clone()).or_insert((renewed.clone(), now));
            if entry.0 != renewed {
                *entry = (renewed, now);
            }
            let deadline = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            if now.duration_since(entry.1) >= deadline {
                lost.insert(name);
            }
        }
        lost
    }
}

/// Looks after nodes until `shutdown`.
pub(crate) async fn run(client: Client, namespace: String, lost: LostNodes, shutdown: CancellationToken) {
    let mut watchman = Watchman::default();
    loop {
        match look(&client, &namespace, &mut watchman).await {
            Ok(found) => *lost.lock().unwrap_or_else(PoisonError::into_inner) = found,
            Err(error) => tracing::warn!(%error, "nodes cannot be judged now; tried again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn look(client: &Client, namespace: &str, watchman: &mut Watchman) -> kube::Result<BTreeSet<String>> {
    let list = ListParams::default();
    let leases = Api::<Lease>::namespaced(client.clone(), namespace).list(&list).await?;
    let nodes = Api::<VMNode>::all(client.clone()).list(&list).await?;
    let vms = Api::<VirtualMachine>::all(client.clone()).list(&list).await?;
    let renewals: BTreeMap<String, (MicroTime, i32)> = leases
        .into_iter()
        .filter_map(|lease| {
            let node = lease.name_any().strip_prefix("vmlet-")?.to_owned();
            let spec = lease.spec?;
            Some((
                node,
                (spec.renew_time?, spec.lease_duration_seconds.unwrap_or(DEADLINE)),
            ))
        })
        .collect();
    let there: BTreeSet<String> = nodes.iter().map(ResourceExt::name_any).collect();
    let names = there
        .iter()
        .cloned()
        .chain(vms.iter().filter_map(|vm| vm.spec.node_name.clone()));
    let known = names.map(|name| (name.clone(), renewals.get(&name).cloned())).collect();
    let lost = watchman.lost(known, Instant::now());

    for node in nodes.iter().filter(|node| lost.contains(&node.name_any())) {
        let conditions = node
            .status
            .as_ref()
            .map(|s| s.conditions.as_slice())
            .unwrap_or_default();
        let message = format!(
            "the agent of node {} has not renewed its Lease; see that it runs and reaches the API",
            node.name_any()
        );
        make_unknown(&Api::<VMNode>::all(client.clone()), node, conditions, &message).await?;
    }
    for vm in &vms {
        let Some(node) = vm.spec.node_name.as_ref().filter(|name| lost.contains(*name)) else {
            continue;
        };
        let api = Api::<VirtualMachine>::namespaced(client.clone(), &vm.namespace().unwrap_or_default());
        if vm.metadata.deletion_timestamp.is_some() && !there.contains(node) {
            remove_finalizer(&api, vm, node).await?;
            continue;
        }
        let conditions = vm.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        let message = format!(
            "node {node} is lost: its agent has not renewed its Lease. Whether the machine runs cannot be told; it is not started elsewhere. See that the agent runs and reaches the API"
        );
        make_unknown(&api, vm, conditions, &message).await?;
    }
    Ok(lost)
}

/// Turns Ready, and nothing else, to Unknown, unless it is.
async fn make_unknown<K>(api: &Api<K>, object: &K, conditions: &[Condition], message: &str) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let before = conditions.iter().find(|c| c.type_ == "Ready");
    if before.is_some_and(|c| c.status == "Unknown" && c.reason == "NodeLost") {
        return Ok(());
    }
    let generation = before.and_then(|c| c.observed_generation);
    let ready = condition(conditions, "Ready", "Unknown", "NodeLost", message, generation);
    let mut all: Vec<Condition> = conditions.iter().filter(|c| c.type_ != "Ready").cloned().collect();
    all.push(ready);
    let mut patch = vec![
        json!({"op": "test", "path": "/metadata/uid", "value": object.uid()}),
        // The agent may be back and have written just now: then its word stands.
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": object.resource_version()}),
    ];
    if conditions.is_empty() {
        patch.push(json!({"op": "add", "path": "/status", "value": {"conditions": all}}));
    } else {
        patch.push(json!({"op": "replace", "path": "/status/conditions", "value": all}));
    }
    send(api, object, patch, true).await
}

async fn remove_finalizer(api: &Api<VirtualMachine>, vm: &VirtualMachine, node: &str) -> kube::Result<()> {
    let Some(index) = vm.finalizers().iter().position(|f| f == FINALIZER) else {
        return Ok(());
    };
    tracing::warn!(vm = %format!("{}/{}", vm.namespace().unwrap_or_default(), vm.name_any()), node, "its node is gone for good; the finalizer is removed");
    let path = format!("/metadata/finalizers/{index}");
    let patch = vec![
        json!({"op": "test", "path": "/metadata/uid", "value": vm.uid()}),
        json!({"op": "test", "path": path, "value": FINALIZER}),
        json!({"op": "remove", "path": path}),
    ];
    send(api, vm, patch, false).await
}

async fn send<K>(api: &Api<K>, object: &K, patch: Vec<serde_json::Value>, status: bool) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let patch: json_patch::Patch = serde_json::from_value(patch.into()).map_err(kube::Error::SerdeError)?;
    let patch = Patch::<()>::Json(patch);
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let name = object.name_any();
    let sent = if status {
        api.patch_status(&name, &params, &patch).await
    } else {
        api.patch(&name, &params, &patch).await
    };
    match sent {
        Err(error) if !is_another_object(&error) => Err(error),
        // Gone or changed meanwhile: the next look sees it.
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::FakeApi;
    use serde_json::Value;

    const VMS: &str = "/apis/vmlet.dev/v1alpha1/namespaces/default/virtualmachines";
    const NODES: &str = "/apis/vmlet.dev/v1alpha1/vmnodes";
    const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/vmlet-n";

    fn renew(api: &FakeApi, second: u32) {
        api.put(LEASE, json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "vmlet-n", "namespace": "ns"},
            "spec": {"holderIdentity": "n", "leaseDurationSeconds": 40, "renewTime": format!("2026-01-01T00:00:{second:02}.000000Z")}}));
    }

    fn world() -> FakeApi {
        let api = FakeApi::default();
        let ready = json!([
            {"type": "Running", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Ready", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        api.put(
            &format!("{VMS}/a"),
            json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "VirtualMachine",
            "metadata": {"name": "a", "namespace": "default", "finalizers": [FINALIZER]},
            "spec": {"nodeName": "n", "imageRef": {"name": "i"}}, "status": {"bootID": "b", "conditions": ready}}),
        );
        api.put(
            &format!("{NODES}/n"),
            json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "VMNode",
            "metadata": {"name": "n"}, "spec": {}, "status": {"conditions": ready}}),
        );
        renew(&api, 0);
        api
    }

    fn ready(object: &Value) -> (String, String) {
        let conditions = object["status"]["conditions"].as_array().expect("conditions");
        let found = conditions.iter().find(|c| c["type"] == "Ready").expect("Ready");
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"))
    }

    fn pair(a: &str, b: &str) -> (String, String) {
        (a.to_owned(), b.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_makes_its_vms_unknown_never_false_and_touches_nothing_else() {
        let api = world();
        let client = api.client();
        let mut watchman = Watchman::default();
        for second in 0..5 {
            renew(&api, second);
            assert!(look(&client, "ns", &mut watchman).await.expect("looks").is_empty());
            tokio::time::advance(Duration::from_secs(30)).await;
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        let lost = look(&client, "ns", &mut watchman).await.expect("looks");
        assert_eq!(lost, BTreeSet::from(["n".to_owned()]));
        let vm = api.get(&format!("{VMS}/a")).expect("there");
        assert_eq!(ready(&vm), pair("Unknown", "NodeLost"));
        assert_eq!(vm["status"]["bootID"], "b");
        assert_eq!(vm["status"]["conditions"][0]["reason"], "Running");
        assert_eq!(
            ready(&api.get(&format!("{NODES}/n")).expect("there")),
            pair("Unknown", "NodeLost")
        );
        api.requests();
        look(&client, "ns", &mut watchman).await.expect("looks");
        assert!(api.requests().iter().all(|r| r.starts_with("GET")), "it is said once");
        renew(&api, 30);
        assert!(
            look(&client, "ns", &mut watchman).await.expect("looks").is_empty(),
            "it is back"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_vm_that_is_being_deleted_on_a_node_that_is_gone_loses_its_finalizer() {
        let api = world();
        let client = api.client();
        let mut watchman = Watchman::default();
        let mut vm = api.get(&format!("{VMS}/a")).expect("there");
        vm["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        api.put(&format!("{VMS}/a"), vm);
        look(&client, "ns", &mut watchman).await.expect("looks");
        tokio::time::advance(Duration::from_secs(41)).await;
        look(&client, "ns", &mut watchman).await.expect("looks");
        assert!(
            api.get(&format!("{VMS}/a")).is_some(),
            "lost is not gone: its agent may come back"
        );
        api.remove(&format!("{NODES}/n"));
        renew(&api, 50);
        look(&client, "ns", &mut watchman).await.expect("looks");
        assert!(
            api.get(&format!("{VMS}/a")).is_some(),
            "an agent that lives removes it itself"
        );
        tokio::time::advance(Duration::from_secs(41)).await;
        look(&client, "ns", &mut watchman).await.expect("looks");
        assert!(api.get(&format!("{VMS}/a")).is_none());
    }
}
