//! Lost nodes: whose agent renews its Lease no more. What runs there is unknown, never dead: `Ready` of its VMs
//! becomes Unknown, and nothing is started elsewhere. When the VMNode is gone too, VMs that are being
//! deleted lose the finalizer that nobody else would remove. A VM that names a node which never was is told so.

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
use crate::condition::{condition, says, unseen};

/// Between two looks. A lost node is told this much later than its deadline; each look is three lists.
const LOOK: Duration = Duration::from_secs(10);
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
            Err(error) => tracing::warn!(
                error = vmlet_crds::in_words(&error),
                "nodes cannot be judged now; tried again"
            ),
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
        let ready = ("Unknown", "NodeLost", message.as_str());
        say_ready(&Api::<VMNode>::all(client.clone()), node, conditions, ready).await?;
    }
    for vm in &vms {
        let Some(node) = &vm.spec.node_name else { continue };
        // An agent that saw it would have put its finalizer on, before all else.
        let never_seen =
            vm.status.as_ref().is_none_or(|s| s.node_name.is_none()) && !vm.finalizers().iter().any(|f| f == FINALIZER);
        let nobody = never_seen
            && !there.contains(node)
            && !renewals.contains_key(node)
            && vm.metadata.deletion_timestamp.is_none();
        if !nobody && !lost.contains(node) {
            continue;
        }
        let api = Api::<VirtualMachine>::namespaced(client.clone(), &vm.namespace().unwrap_or_default());
        if vm.metadata.deletion_timestamp.is_some() && !there.contains(node) {
            remove_finalizer(&api, vm, node).await?;
            continue;
        }
        if nobody {
            let message = format!(
                "there is no VMNode \"{node}\", which spec.nodeName names; {}. Start an agent with --node-name {node}, or create the virtual machine anew with another spec.nodeName or none",
                known_nodes(&there)
            );
            let status = unseen(vm, true, "NodeNotFound", &message);
            if !says(vm, &status) {
                let status = json!({"op": "add", "path": "/status", "value": status});
                send(&api, vm, [as_it_is(vm).as_slice(), &[status]].concat(), true).await?;
            }
            continue;
        }
        let conditions = vm.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        let ready = if there.contains(node) {
            let message = format!(
                "node {node} is lost: its agent has not renewed its Lease. Whether the machine runs cannot be told; it is not started elsewhere. See that the agent runs and reaches the API"
            );
            ("Unknown", "NodeLost", message)
        } else {
            let message = format!(
                "there is no VMNode \"{node}\" any more; {}. Whether the machine runs cannot be told; it is not started elsewhere. Start the agent of that node again, or delete the virtual machine",
                known_nodes(&there)
            );
            ("Unknown", "NodeLost", message)
        };
        say_ready(&api, vm, conditions, (ready.0, ready.1, &ready.2)).await?;
    }
    Ok(lost)
}

/// The nodes that there are, for people; not more than a few.
fn known_nodes(there: &BTreeSet<String>) -> String {
    const MOST: usize = 5;
    let names: Vec<&str> = there.iter().take(MOST).map(String::as_str).collect();
    match there.len() {
        0 => "there is none at all yet".to_owned(),
        1..=MOST => format!("there are: {}", names.join(", ")),
        more => format!("there are: {} and {} more", names.join(", "), more - MOST),
    }
}

/// Writes Ready, and nothing else, unless it says so already: status, reason and message.
async fn say_ready<K>(
    api: &Api<K>,
    object: &K,
    conditions: &[Condition],
    (status, reason, message): (&str, &str, &str),
) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let before = conditions.iter().find(|c| c.type_ == "Ready");
    if before.is_some_and(|c| c.status == status && c.reason == reason && c.message == message) {
        return Ok(());
    }
    let generation = before.and_then(|c| c.observed_generation);
    let ready = condition(conditions, "Ready", status, reason, message, generation);
    let mut all: Vec<Condition> = conditions.iter().filter(|c| c.type_ != "Ready").cloned().collect();
    all.push(ready);
    let mut patch = as_it_is(object).to_vec();
    if conditions.is_empty() {
        patch.push(json!({"op": "add", "path": "/status", "value": {"conditions": all}}));
    } else {
        patch.push(json!({"op": "replace", "path": "/status/conditions", "value": all}));
    }
    send(api, object, patch, true).await
}

/// What a patch begins with that is meant for the object as it was seen: the agent may be back and have written just
/// now, and then its word stands.
fn as_it_is<K: Resource>(object: &K) -> [serde_json::Value; 2] {
    [
        json!({"op": "test", "path": "/metadata/uid", "value": object.uid()}),
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": object.resource_version()}),
    ]
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
    async fn a_vm_on_a_node_that_never_was_is_told_so_at_once_with_the_nodes_that_there_are() {
        let api = world();
        let client = api.client();
        let mut vm = api.get(&format!("{VMS}/a")).expect("there");
        vm["metadata"] = json!({"name": "b", "namespace": "default"});
        vm["spec"]["nodeName"] = json!("typo");
        vm.as_object_mut().expect("an object").remove("status");
        api.put(&format!("{VMS}/b"), vm);
        let mut watchman = Watchman::default();
        look(&client, "ns", &mut watchman).await.expect("looks");
        let told = || {
            let vm = api.get(&format!("{VMS}/b")).expect("there");
            let conditions = vm["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let message = conditions
                .iter()
                .find(|c| c["type"] == "Ready")
                .map(|c| c["message"].clone());
            let message = message.and_then(|m| m.as_str().map(str::to_owned)).unwrap_or_default();
            (ready(&vm), message)
        };
        let (first, message) = told();
        assert_eq!(first, pair("False", "NodeNotFound"));
        for word in [
            "no VMNode \"typo\"",
            "spec.nodeName",
            "there are: n.",
            "--node-name typo",
        ] {
            assert!(message.contains(word), "{word}: {message}");
        }
        api.requests();
        look(&client, "ns", &mut watchman).await.expect("looks");
        assert!(api.requests().iter().all(|r| r.starts_with("GET")), "it is said once");
        let mut changed = api.get(&format!("{VMS}/b")).expect("there");
        assert_eq!(
            changed["status"]["conditions"].as_array().map(Vec::len),
            Some(10),
            "all conditions"
        );
        changed["metadata"]["generation"] = json!(2);
        api.put(&format!("{VMS}/b"), changed);
        look(&client, "ns", &mut watchman).await.expect("looks");
        let seen = api.get(&format!("{VMS}/b")).expect("there");
        assert_eq!(seen["status"]["observedGeneration"], json!(2));
        assert_eq!(seen["status"]["conditions"][0]["observedGeneration"], json!(2));
        tokio::time::advance(Duration::from_secs(41)).await;
        renew(&api, 41);
        look(&client, "ns", &mut watchman).await.expect("looks");
        assert_eq!(
            told().0,
            pair("False", "NodeNotFound"),
            "a node that never was is not lost"
        );
        api.remove(&format!("{NODES}/n"));
        look(&client, "ns", &mut watchman).await.expect("looks");
        assert!(told().1.contains("there is none at all yet"), "{}", told().1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_vm_whose_node_was_removed_is_unknown_and_says_that_the_node_is_gone() {
        let api = world();
        let client = api.client();
        let mut vm = api.get(&format!("{VMS}/a")).expect("there");
        vm["status"]["nodeName"] = json!("n");
        api.put(&format!("{VMS}/a"), vm);
        api.remove(&format!("{NODES}/n"));
        let mut watchman = Watchman::default();
        look(&client, "ns", &mut watchman).await.expect("looks");
        tokio::time::advance(Duration::from_secs(41)).await;
        look(&client, "ns", &mut watchman).await.expect("looks");
        let vm = api.get(&format!("{VMS}/a")).expect("there");
        assert_eq!(ready(&vm), pair("Unknown", "NodeLost"));
        let all = vm["status"]["conditions"].to_string();
        assert!(all.contains("there is no VMNode \\\"n\\\" any more"), "{all}");
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
