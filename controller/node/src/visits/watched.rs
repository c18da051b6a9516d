//! The agent as a whole: what the watch wakes, and what it does not.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vmlet_artifacts::types::Interest;

use super::world::{VM, World};
use crate::agent::{Agent, AgentConfig, NodeFacts};
use crate::dereference::VM_PREFIX;
use crate::fake_api::FakeApi;
use crate::metrics::Metrics;

const LIMIT: Duration = Duration::from_secs(30);

/// An agent that runs.
struct Running {
    api: FakeApi,
    metrics: Metrics,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Running {
    async fn new() -> Running {
        let World {
            cx, api, wakes, dir, ..
        } = World::with_qemu("/bin/false").await;
        api.put(
            "/api/v1/namespaces/kube-system",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}}),
        );
        let config = AgentConfig {
            data_dir: dir.path().to_owned(),
            facts: NodeFacts {
                namespace: "default".to_owned(),
                ..NodeFacts::default()
            },
            node: "n".to_owned(),
            keep_unused: Duration::from_secs(86400),
        };
        let (artifacts, machines) = (cx.dereferencer.artifacts.clone(), cx.machines.clone());
        let metrics = Metrics::default();
        let agent = Agent::new(api.client(), config, artifacts, machines, metrics.clone()).expect("opens");
        let (mut artifact_wakes, machine_wakes) = wakes;
        let (wake, woken) = mpsc::channel(8);
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move {
            let forward = async {
                while let Some(Interest(who)) = artifact_wakes.recv().await {
                    let _ = wake.send(who.trim_start_matches(VM_PREFIX).to_owned()).await;
                }
            };
            tokio::select! {
                ended = agent.run(woken, machine_wakes, stop, || {}) => ended.expect("ends by the shutdown only"),
                () = forward => {}
            }
        });
        Running {
            api,
            metrics,
            shutdown,
            task,
            _dir: dir,
        }
    }

    /// Declares a VM.
    fn declare(&self, name: &str, strategy: &str) {
        let spec =
            json!({"nodeName": "n", "imageRef": {"name": "i"}, "kernelRef": {"name": "k"}, "runStrategy": strategy});
        self.api.put(
            &format!("{VM}/{name}"),
            json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "VirtualMachine", "spec": spec,
                "metadata": {"name": name, "namespace": "default", "generation": 1}}),
        );
    }

    /// Waits until the status of a VM is as wanted.
    async fn until(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let seen = async {
            let mut changes = self.api.changes();
            loop {
                last = self.api.get(&format!("{VM}/{name}")).unwrap_or_default();
                if wanted(&last["status"]) {
                    return;
                }
                let _ = changes.recv().await;
            }
        };
        let seen = tokio::time::timeout(LIMIT, seen).await;
        assert!(seen.is_ok(), "last seen: {last:#}");
        last
    }

    /// How many statuses were taken for somebody else's.
    fn foreign(&self) -> u64 {
        let text = self.metrics.encode();
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("vmlet_foreign_statuses_total "));
        count.and_then(|count| count.parse().ok()).expect("a count")
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.expect("no panic");
    }
}

fn ready(status: &Value) -> &str {
    let conditions = status["conditions"].as_array();
    let ready = conditions.and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
    ready.and_then(|c| c["reason"].as_str()).unwrap_or_default()
}

#[tokio::test]
async fn a_status_by_somebody_else_is_put_right_at_once_and_no_own_one_wakes_anybody() {
    let agent = Running::new().await;
    agent.declare("a", "Halted");
    let own = agent.until("a", |status| ready(status) == "Halted").await;
    for evil in [json!({"restartCount": 55, "sshHostKey": "evil"}), Value::Null] {
        let mut other = agent.api.get(&format!("{VM}/a")).expect("there");
        other["status"] = evil;
        agent.api.put(&format!("{VM}/a"), other);
        agent.until("a", |status| *status == own["status"]).await;
    }
    // What the watch tells of the last write comes before another machine.
    agent.declare("b", "Halted");
    agent.until("b", |status| ready(status) == "Halted").await;
    assert_eq!(agent.foreign(), 2, "both, and no status of the agent's own");
    let requests = agent.api.requests();
    let written = |name: &str| {
        let path = format!("PATCH {VM}/{name}/status");
        requests.iter().filter(|request| **request == path).count()
    };
    assert_eq!((written("a"), written("b")), (3, 1), "{requests:?}");
    agent.end().await;
}

#[tokio::test]
async fn a_start_is_woken_by_none_of_its_own_writes() {
    let agent = Running::new().await;
    agent.declare("a", "Always");
    agent.until("a", |status| ready(status) == "BackOff").await;
    agent.declare("b", "Halted");
    agent.until("b", |status| ready(status) == "Halted").await;
    let requests = agent.api.requests();
    let writes = requests
        .iter()
        .filter(|request| **request == format!("PATCH {VM}/a/status"))
        .count();
    assert!(writes > 1, "{requests:?}");
    assert_eq!(agent.foreign(), 0, "{requests:?}");
    agent.end().await;
}
