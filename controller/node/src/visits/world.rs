//! What a visit needs, made for tests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::events::Reporter;
use kube::runtime::reflector::store::Writer;
use kube::runtime::{reflector, watcher};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vmlet_artifacts::error::{PullError, Reason};
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::pulls::work::{BuiltImage, BuiltKernel, Job, Output, Work, WorkContext};
use vmlet_artifacts::types::{BootFormat, Config, ImageConfig, Interest, Resolved};
use vmlet_crds::{Image, Kernel, SecretWaits, VirtualMachine, VirtualMachineStatus};
use vmlet_machines::Machines;

use crate::dereference::Dereferencer;
use crate::fake_api::FakeApi;
use crate::memory::Records;
use crate::metrics::Metrics;
use crate::own_writes::OwnWrites;
use crate::reconcile::{Context, Error, reconcile};

/// Where objects lie.
pub const VM: &str = "/apis/vmlet.dev/v1alpha1/namespaces/default/virtualmachines";
pub const IMAGE: &str = "/apis/vmlet.dev/v1alpha1/namespaces/default/images";
pub const KERNEL: &str = "/apis/vmlet.dev/v1alpha1/namespaces/default/kernels";

/// Digest of everything.
pub const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Does pulls as a test says: everything succeeds but what is to fail.
#[derive(Clone, Default)]
pub struct Script {
    failures: Arc<Mutex<HashMap<String, PullError>>>,
    hanging: Arc<Mutex<HashMap<String, CancellationToken>>>,
    jobs: Arc<Mutex<Vec<String>>>,
}

impl Script {
    /// From now on a job of this source goes on until it is cancelled, as the answer then says.
    pub fn hang(&self, source: &str) -> CancellationToken {
        let ended = CancellationToken::new();
        let mut hanging = self.hanging.lock().expect("unpoisoned");
        hanging.insert(source.to_owned(), ended.clone());
        ended
    }

    /// From now on this source fails so.
    pub fn fail(&self, source: &str, reason: Reason, message: &str) {
        let error = PullError::new(reason, message);
        self.failures
            .lock()
            .expect("unpoisoned")
            .insert(source.to_owned(), error);
    }

    /// Sources of all jobs so far.
    pub fn jobs(&self) -> Vec<String> {
        self.jobs.lock().expect("unpoisoned").clone()
    }
}

impl Work for Script {
    fn image_layout(&self) -> String {
        "test".to_owned()
    }

    fn kernel_layout(&self) -> String {
        "test".to_owned()
    }

    fn run(&self, job: Job, cx: WorkContext) -> BoxFuture<'static, Result<Output, PullError>> {
        let (Job::Resolve { source, .. } | Job::Image { source, .. } | Job::Kernel { source, .. }) = &job;
        let source = source.to_string();
        self.jobs.lock().expect("unpoisoned").push(source.clone());
        let failure = self.failures.lock().expect("unpoisoned").get(&source).cloned();
        let hanging = self.hanging.lock().expect("unpoisoned").get(&source).cloned();
        async move {
            if let Some(failure) = failure {
                return Err(failure);
            }
            if let Some(ended) = hanging {
                let _ended = ended.drop_guard();
                cx.cancel.cancelled().await;
                return Err(PullError::new(Reason::Cancelled, "nobody wants it"));
            }
            let write = |name: &str, bytes: &[u8]| std::fs::write(cx.dir.join(name), bytes).expect("writes");
            Ok(match job {
                Job::Resolve { .. } => Output::Resolved(Resolved {
                    reference: source,
                    digest: DIGEST.to_owned(),
                    media_type: String::new(),
                    platform: String::new(),
                    compressed_size: 0,
                }),
                Job::Image { .. } => {
                    write("disk", &[0; 2 << 20]);
                    Output::Image(BuiltImage {
                        disk: "disk".to_owned(),
                        content_hash: DIGEST.to_owned(),
                        config: ImageConfig::default(),
                    })
                }
                Job::Kernel { .. } => {
                    write("kernel", b"\x7fELF");
                    Output::Kernel(BuiltKernel {
                        kernel: "kernel".to_owned(),
                        boot_format: BootFormat::PvhElf,
                        version: "6.1".to_owned(),
                        modules_tar: None,
                        modules_disk: None,
                        initrd: None,
                    })
                }
            })
        }
        .boxed()
    }
}

/// An agent's insides.
pub struct World {
    pub cx: Arc<Context>,
    pub api: FakeApi,
    pub script: Script,
    pub wakes: (mpsc::Receiver<Interest>, mpsc::Receiver<String>),
    /// Uids that a secret was in the way of, once it changed.
    pub secret_wakes: mpsc::Receiver<String>,
    /// What the watches on images and kernels have told.
    watched: (Writer<Image>, Writer<Kernel>),
    pub dir: tempfile::TempDir,
}

impl World {
    /// An empty node, and image `i` and kernel `k` in the API.
    pub async fn new() -> World {
        World::with_qemu("/nonexistent/qemu").await
    }

    /// The same with another program as QEMU.
    pub async fn with_qemu(qemu: &str) -> World {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let api = FakeApi::default();
        let script = Script::default();
        let (artifact_wake, artifact_wakes) = mpsc::channel(64);
        let (machine_wake, machine_wakes) = mpsc::channel(64);
        let (secret_wake, secret_wakes) = mpsc::channel(64);
        let ((images, image_watch), (kernels, kernel_watch)) = (reflector::store(), reflector::store());
        let mut config = Config::new(dir.path().join("artifacts"));
        config.platform = "linux/amd64".to_owned();
        let artifacts = Artifacts::open_with(&config, Arc::new(script.clone()), artifact_wake)
            .await
            .expect("opens");
        let mut config = vmlet_machines::Config::new(dir.path().join("machines"));
        config.qemu = Some(qemu.into());
        // Any file does: no guest ever boots here.
        config.initrd = Some("/dev/null".into());
        config.isolate = false;
        let machines = Machines::open(config, machine_wake).await.expect("opens");
        let cx = Context {
            client: api.client(),
            node: "n".to_owned(),
            dereferencer: Dereferencer {
                client: api.client(),
                images,
                kernels,
                artifacts,
                secrets: SecretWaits::new(api.client(), secret_wake),
            },
            machines,
            records: Records::open(dir.path().join("node/vms")).expect("opens"),
            memories: Mutex::default(),
            own_writes: OwnWrites::default(),
            names: Mutex::default(),
            reporter: Reporter {
                controller: "vmlet-agent".to_owned(),
                instance: Some("n".to_owned()),
            },
            node_object: Mutex::default(),
            disk: Mutex::default(),
            failures: Mutex::default(),
            metrics: Metrics::default(),
        };
        for (path, kind, reference) in [(IMAGE, "Image", "r/i:1"), (KERNEL, "Kernel", "r/k:1")] {
            let name = if kind == "Image" { "i" } else { "k" };
            api.put(
                &format!("{path}/{name}"),
                json!({
                    "apiVersion": "vmlet.dev/v1alpha1", "kind": kind,
                    "metadata": {"name": name, "namespace": "default", "generation": 1},
                    "spec": {"source": {"oci": {"reference": reference}}},
                    "status": {"observedGeneration": 1, "resolved": {"reference": reference, "digest": DIGEST}},
                }),
            );
        }
        World {
            cx: Arc::new(cx),
            api,
            script,
            wakes: (artifact_wakes, machine_wakes),
            secret_wakes,
            watched: (image_watch, kernel_watch),
            dir,
        }
    }

    /// The watches tell of image `i` and kernel `k` as the API has them now.
    pub fn watch(&mut self) {
        let object = |path: String| self.api.get(&path).expect("there");
        let image = serde_json::from_value(object(format!("{IMAGE}/i"))).expect("an Image");
        let kernel = serde_json::from_value(object(format!("{KERNEL}/k"))).expect("a Kernel");
        self.watched.0.apply_watcher_event(&watcher::Event::Apply(image));
        self.watched.1.apply_watcher_event(&watcher::Event::Apply(kernel));
    }

    /// Declares a VM of image `i` and kernel `k`.
    pub fn declare(&self, name: &str) {
        self.declare_with(name, json!({"imageRef": {"name": "i"}, "kernelRef": {"name": "k"}}));
    }

    /// Declares a VM.
    pub fn declare_with(&self, name: &str, mut spec: serde_json::Value) {
        spec["nodeName"] = json!("n");
        self.api.put(
            &format!("{VM}/{name}"),
            json!({
                "apiVersion": "vmlet.dev/v1alpha1", "kind": "VirtualMachine",
                "metadata": {"name": name, "namespace": "default", "generation": 1},
                "spec": spec,
            }),
        );
    }

    /// Marks a VM as being deleted.
    pub fn delete(&self, name: &str) {
        let path = format!("{VM}/{name}");
        let mut object = self.api.get(&path).expect("there");
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        self.api.put(&path, object);
    }

    /// A VM as the API has it.
    pub fn vm(&self, name: &str) -> VirtualMachine {
        serde_json::from_value(self.api.get(&format!("{VM}/{name}")).expect("there")).expect("a VM")
    }

    pub fn uid(&self, name: &str) -> String {
        self.vm(name).uid().expect("has one")
    }

    /// Visits a VM once, as the watch would have it.
    pub async fn visit(&self, name: &str) -> Result<Action, Error> {
        reconcile(Arc::new(self.vm(name)), Arc::clone(&self.cx)).await
    }

    /// Visits a VM whenever something woke it, until its status is as wanted.
    pub async fn until(&mut self, name: &str, wanted: impl Fn(&VirtualMachineStatus) -> bool) -> VirtualMachineStatus {
        for _ in 0..1000 {
            self.visit(name).await.expect("visits");
            let status = self.vm(name).status.unwrap_or_default();
            if wanted(&status) {
                return status;
            }
            self.woken(&status).await;
        }
        panic!("woken again and again; last seen: {:#?}", self.vm(name).status);
    }

    /// Visits a VM until its object is gone.
    pub async fn gone(&mut self, name: &str) {
        while self.api.get(&format!("{VM}/{name}")).is_some() {
            self.visit(name).await.expect("visits");
            if self.api.get(&format!("{VM}/{name}")).is_some() {
                self.woken(&self.vm(name).status.unwrap_or_default()).await;
            }
        }
    }

    /// Waits until a machine changed.
    pub async fn machine_woken(&mut self) {
        let woken = tokio::time::timeout(Duration::from_secs(30), self.wakes.1.recv());
        assert!(woken.await.is_ok(), "no machine changed");
    }

    async fn woken(&mut self, last: &VirtualMachineStatus) {
        let woken = tokio::time::timeout(Duration::from_secs(30), async {
            tokio::select! {
                who = self.wakes.0.recv() => who.is_some(),
                uid = self.wakes.1.recv() => uid.is_some(),
            }
        });
        assert!(woken.await.is_ok(), "nothing woke it; last seen: {last:#?}");
    }
}

/// Status, reason and message of a condition.
pub fn condition(status: &VirtualMachineStatus, type_: &str) -> (String, String, String) {
    let found = status.conditions.iter().find(|c| c.type_ == type_);
    found.map_or_else(Default::default, |c| {
        (c.status.clone(), c.reason.clone(), c.message.clone())
    })
}

/// The summary.
pub fn ready(status: &VirtualMachineStatus) -> (String, String, String) {
    condition(status, "Ready")
}

/// Whether nothing is under way any more.
pub fn settled(status: &VirtualMachineStatus) -> bool {
    ["ImageReady", "KernelReady"]
        .iter()
        .all(|type_| !["Pulling", "Queued", "Resolving"].contains(&condition(status, type_).1.as_str()))
}
