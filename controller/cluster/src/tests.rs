//! The whole of it over a fake API: what wakes what.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vmlet_artifacts::error::{PullError, Reason};
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::pulls::work::{Job, Output, Work, WorkContext};
use vmlet_artifacts::types::{Config, Interest};

use crate::fake_api::FakeApi;

const BASE: &str = "/apis/vmlet.dev/v1alpha1/namespaces/default";
const LIMIT: Duration = Duration::from_secs(30);

/// A registry that never answers. It says what it is asked, and who has given up.
struct Silent(mpsc::UnboundedSender<String>);

impl Work for Silent {
    fn image_layout(&self) -> String {
        "test".to_owned()
    }

    fn kernel_layout(&self) -> String {
        "test".to_owned()
    }

    fn run(&self, job: Job, cx: WorkContext) -> BoxFuture<'static, Result<Output, PullError>> {
        let (Job::Resolve { source, .. } | Job::Image { source, .. } | Job::Kernel { source, .. }) = job;
        let said = self.0.clone();
        async move {
            let _ = said.send(format!("asked for {source}"));
            cx.cancel.cancelled().await;
            let _ = said.send(format!("{source} was given up"));
            Err(PullError::new(Reason::Cancelled, "given up"))
        }
        .boxed()
    }
}

struct World {
    api: FakeApi,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new(objects: &[(&str, Value)]) -> World {
        World::with(None, objects).await
    }

    /// The same with another registry.
    async fn with(work: Option<Silent>, objects: &[(&str, Value)]) -> World {
        let api = FakeApi::default();
        for (path, object) in objects {
            let mut object = object.clone();
            object["apiVersion"] = json!("vmlet.dev/v1alpha1");
            object["metadata"]["namespace"] = json!("default");
            object["metadata"]["generation"] = json!(1);
            api.put(&format!("{BASE}/{path}"), object);
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (wake, mut woken) = mpsc::channel::<Interest>(8);
        let config = Config::new(dir.path().join("artifacts"));
        let artifacts = match work {
            Some(work) => Artifacts::open_with(&config, Arc::new(work), wake).await,
            None => Artifacts::open(config, wake).await,
        };
        let artifacts = artifacts.expect("opens");
        let (images, image_wakes) = mpsc::channel(8);
        let (kernels, kernel_wakes) = mpsc::channel(8);
        let (client, shutdown) = (api.client(), CancellationToken::new());
        let stop = shutdown.clone();
        let running = tokio::spawn(async move {
            let wakes = async {
                while let Some(Interest(who)) = woken.recv().await {
                    let Some((kind, uid)) = who.split_once('/') else {
                        continue;
                    };
                    let to = if kind == "image" { &images } else { &kernels };
                    let _ = to.send(uid.to_owned()).await;
                }
            };
            let run = crate::run(client, "default", artifacts, image_wakes, kernel_wakes, stop);
            tokio::select! {
                ended = run => ended.expect("ends by the shutdown only"),
                () = wakes => {}
            }
        });
        World {
            api,
            shutdown,
            running,
            _dir: dir,
        }
    }

    /// Waits until status, reason and message of Ready are as wanted.
    async fn ready(&self, path: &str, wanted: impl Fn(&str, &str, &str) -> bool) {
        self.seen(path, |object| {
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let word = |c: &Value, key: &str| c[key].as_str().unwrap_or_default().to_owned();
            let ready = conditions.iter().find(|c| c["type"] == "Ready");
            ready.is_some_and(|c| wanted(&word(c, "status"), &word(c, "reason"), &word(c, "message")))
        })
        .await;
    }

    /// Waits until an object is as wanted.
    async fn seen(&self, path: &str, wanted: impl Fn(&Value) -> bool) {
        let mut last = Value::Null;
        let seen = async {
            let mut changes = self.api.changes();
            loop {
                last = self.api.get(&format!("{BASE}/{path}")).unwrap_or_default();
                if wanted(&last) {
                    return;
                }
                let _ = changes.recv().await;
            }
        };
        let seen = tokio::time::timeout(LIMIT, seen).await;
        assert!(seen.is_ok(), "last seen: {last:#}");
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.running.await.expect("no panic");
    }
}

fn vm(status: &str, reason: &str, message: &str) -> Value {
    json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "VirtualMachine",
        "metadata": {"name": "a", "namespace": "default", "uid": "u"},
        "spec": {"nodeName": "n", "imageRef": {"name": "i"}, "kernelRef": {"name": "k"}},
        "status": {"nodeName": "n", "conditions": [{"type": "KernelReady", "status": status, "reason": reason,
            "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
}

#[tokio::test]
async fn what_a_node_finds_of_a_kernel_reaches_its_status_and_leaves_it_again() {
    let kernel = json!({"kind": "Kernel", "metadata": {"name": "k"}, "spec": {"source": {"path": {"path": "x.tar"}}, "kernelPath": "boot/none"}});
    let world = World::new(&[("kernels/k", kernel)]).await;
    world
        .ready("kernels/k", |is, why, _| (is, why) == ("Unknown", "ResolvedByNode"))
        .await;
    let path = format!("{BASE}/virtualmachines/a");
    let message = "kernel \"k\": there is no \"boot/none\" in it; tried again at 00:00:10Z";
    world.api.put(&path, vm("False", "MissingFile", message));
    world
        .ready("kernels/k", |is, why, message| {
            (is, why, message) == ("False", "MissingFile", "on node n: there is no \"boot/none\" in it")
        })
        .await;
    world.api.put(&path, vm("True", "Present", "sha256:1"));
    world
        .ready("kernels/k", |is, why, _| (is, why) == ("True", "Present"))
        .await;
    world.end().await;
}

#[tokio::test]
async fn an_image_that_waits_for_its_pull_secret_goes_on_as_soon_as_it_is_there() {
    let image = json!({"kind": "Image", "metadata": {"name": "i"}, "spec": {
        "source": {"oci": {"reference": "Not A Reference"}}, "pullSecretRefs": [{"name": "login"}]}});
    let world = World::new(&[("images/i", image)]).await;
    world
        .ready("images/i", |is, why, message| {
            (is, why) == ("False", "PullSecretUnusable") && message.contains("\"login\" does not exist")
        })
        .await;
    let before = std::time::Instant::now();
    world.api.put(
        "/api/v1/namespaces/default/secrets/login",
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login", "namespace": "default"},
            "data": {".dockerconfigjson": "eyJhdXRocyI6IHt9fQ=="}}),
    );
    world
        .ready("images/i", |is, why, message| {
            (is, why) == ("False", "BadReference") && message.contains("; tried again at ")
        })
        .await;
    assert!(
        before.elapsed() < crate::resolver::POLL,
        "by a wake-up, not by looking again"
    );
    world.end().await;
}

#[tokio::test]
async fn a_machine_that_found_no_node_is_bound_as_soon_as_one_is_ready() {
    let machine = |name: &str| {
        json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "VirtualMachine",
            "metadata": {"name": name, "namespace": "default", "uid": name, "generation": 1},
            "spec": {"imageRef": {"name": "i"}, "memory": {"size": "1Gi"}}})
    };
    let world = World::new(&[]).await;
    // The second one is looked at after the first one's last look, which its own status caused.
    for name in ["b", "c"] {
        world.api.put(&format!("{BASE}/virtualmachines/{name}"), machine(name));
        world
            .ready(&format!("virtualmachines/{name}"), |is, why, message| {
                (is, why) == ("False", "NoNode") && message.contains("no VMNode exists")
            })
            .await;
    }
    let before = std::time::Instant::now();
    world.api.put(
        "/apis/vmlet.dev/v1alpha1/vmnodes/n",
        json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "VMNode", "metadata": {"name": "n"}, "spec": {},
            "status": {"allocatable": {"memory": "2Gi"}, "conditions": [{"type": "Ready", "status": "True",
                "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
    );
    world
        .seen("virtualmachines/b", |vm| vm["spec"]["nodeName"] == "n")
        .await;
    assert!(
        before.elapsed() < crate::binder::RETRY / 2,
        "by a wake-up, not by looking again"
    );
    world.end().await;
}

/// What a silent registry says next.
async fn said(words: &mut mpsc::UnboundedReceiver<String>) -> String {
    let next = tokio::time::timeout(LIMIT, words.recv()).await;
    next.expect("something is said").expect("a registry")
}

fn image(reference: &str) -> Value {
    json!({"kind": "Image", "metadata": {"name": "i"}, "spec": {"source": {"oci": {"reference": reference}}}})
}

#[tokio::test]
async fn what_is_deleted_is_resolved_no_more() {
    let (say, mut words) = mpsc::unbounded_channel();
    let kernel =
        json!({"kind": "Kernel", "metadata": {"name": "k"}, "spec": {"source": {"oci": {"reference": "r.test/k:1"}}}});
    let objects = [("images/i", image("r.test/i:1")), ("kernels/k", kernel)];
    let world = World::with(Some(Silent(say)), &objects).await;
    let mut asked = [said(&mut words).await, said(&mut words).await];
    asked.sort();
    assert_eq!(asked, ["asked for r.test/i:1", "asked for r.test/k:1"]);
    world.api.remove(&format!("{BASE}/images/i"));
    assert_eq!(said(&mut words).await, "r.test/i:1 was given up");
    world.api.remove(&format!("{BASE}/kernels/k"));
    assert_eq!(said(&mut words).await, "r.test/k:1 was given up");
    world.end().await;
}

#[tokio::test]
async fn what_was_deleted_while_no_watch_looked_is_resolved_no_more() {
    let (say, mut words) = mpsc::unbounded_channel();
    let world = World::with(Some(Silent(say)), &[("images/i", image("r.test/i:1"))]).await;
    assert_eq!(said(&mut words).await, "asked for r.test/i:1");
    world
        .ready("images/i", |is, why, _| (is, why) == ("Unknown", "Resolving"))
        .await;
    // Another one of the same name is another one.
    world.api.remove_unseen(&format!("{BASE}/images/i"));
    let mut other = image("r.test/i:2");
    other["metadata"]["namespace"] = json!("default");
    other["metadata"]["generation"] = json!(1);
    world.api.put(&format!("{BASE}/images/i"), other);
    let mut both = [said(&mut words).await, said(&mut words).await];
    both.sort();
    assert_eq!(both, ["asked for r.test/i:2", "r.test/i:1 was given up"]);
    world.end().await;
}

#[tokio::test]
async fn what_a_url_holds_for_the_server_alone_is_not_in_the_status() {
    let url = "https://user:hunter2@files.example/guest.tar?signature=abc";
    let image = json!({"kind": "Image", "metadata": {"name": "i"}, "spec": {"source": {"http": {"url": url, "sha256": "0".repeat(64)}}}});
    let world = World::new(&[("images/i", image)]).await;
    world
        .seen("images/i", |image| {
            image["status"]["resolved"]["reference"] == "https://files.example/guest.tar"
        })
        .await;
    world.end().await;
}
