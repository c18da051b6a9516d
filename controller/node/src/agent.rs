//! The agent as a whole: its tasks and what wakes them.
//!
//! Tasks: the controller (one reconcile per VM at a time, at most [`CONCURRENCY`] in all), the
//! heartbeat, the sweep for orphans. Channels: `artifacts` and `machines` each send the uid of what
//! changed; both are merged into the controller's own queue.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::controller::Config as ControllerConfig;
use kube::runtime::events::Reporter;
use kube::runtime::predicates::{finalizers, generation};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::Config as WatchConfig;
use kube::runtime::{Controller, Predicate, WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use vmlet_artifacts::facade::Artifacts;
use vmlet_crds::{Image, Kernel, SecretWaits, VirtualMachine};
use vmlet_machines::Machines;

use crate::dereference::Dereferencer;
use crate::memory::Records;
use crate::metrics::Metrics;
use crate::own_writes::OwnWrites;
use crate::reconcile::{Context, FIELD_MANAGER, error_policy, reconcile};
use crate::{housekeeping, identity, orphans, vmnode};

/// Most reconciles at once. Each makes a handful of API calls, and may wait a moment for a VMM; more would only queue at
/// the server.
pub const CONCURRENCY: u16 = 16;
/// Wake-ups by secrets that may be on their way at once; who sends them waits beyond that.
const SECRET_WAKES: usize = 64;
/// Wake-ups by a status of somebody else that may be on their way at once; the watch waits beyond that.
const STATUS_WAKES: usize = 64;
/// How often the node is searched for machines whose VM is gone.
const SWEEP: Duration = Duration::from_secs(60);

/// Settings of an agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The data directory, already locked by the caller.
    pub data_dir: PathBuf,
    /// What the agent tells of its node.
    pub facts: NodeFacts,
    /// Name of the node: VMs whose spec.nodeName is this are ours.
    pub node: String,
    /// How long images and kernels are kept that nobody uses.
    pub keep_unused: Duration,
}

/// What the agent tells of its node in VMNode.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// Namespace of the heartbeat's Lease.
    pub namespace: String,
    /// Labels of the VMNode.
    pub labels: BTreeMap<String, String>,
    /// Processors.
    pub cpus: usize,
    /// Memory of the node in bytes.
    pub memory_bytes: u64,
    /// Memory for VMs in bytes.
    pub allocatable_bytes: u64,
    /// VMMs found: kind and version.
    pub vmms: Vec<(String, String)>,
    /// KVM or TCG.
    pub accelerator: String,
    /// Ready and the rest.
    pub conditions: Vec<NodeCondition>,
}

/// A condition of the node.
#[derive(Clone, Debug)]
pub struct NodeCondition {
    /// Its type.
    pub type_: String,
    /// True or False.
    pub holds: bool,
    /// CamelCase.
    pub reason: String,
    /// What is the matter, and what to do.
    pub message: String,
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The data directory belongs to another API.
    #[error(
        "{dir} belongs to another Kubernetes API (its kube-system namespace has uid {owner}, this one's has {found}): nothing was touched. Use another --data-dir, or point the agent at the API that it served before"
    )]
    ForeignApi {
        /// The data directory.
        dir: PathBuf,
        /// Uid that owns it.
        owner: String,
        /// Uid that was found.
        found: String,
    },
    /// The data directory cannot be used.
    #[error("data directory {dir}: {error}")]
    DataDir {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The controller's stream ended, which only a shutdown should cause.
    #[error("the watch on virtual machines ended")]
    WatchEnded,
}

/// A node agent.
pub struct Agent {
    config: AgentConfig,
    cx: Arc<Context>,
    images: Writer<Image>,
    kernels: Writer<Kernel>,
    secret_wakes: mpsc::Receiver<String>,
}

impl Agent {
    /// Puts an agent together. Nothing runs yet.
    ///
    /// # Errors
    /// When the data directory cannot be used.
    pub fn new(
        client: Client,
        config: AgentConfig,
        artifacts: Artifacts,
        machines: Machines,
        metrics: Metrics,
    ) -> Result<Self, AgentError> {
        let failed = |error| AgentError::DataDir {
            dir: config.data_dir.clone(),
            error,
        };
        let records = Records::open(config.data_dir.join("node/vms")).map_err(failed)?;
        let reporter = Reporter {
            controller: FIELD_MANAGER.to_owned(),
            instance: Some(config.node.clone()),
        };
        let (secret_wake, secret_wakes) = mpsc::channel(SECRET_WAKES);
        let (images, image_writer) = reflector::store();
        let (kernels, kernel_writer) = reflector::store();
        let cx = Context {
            reporter,
            node_object: Mutex::new(None),
            disk: Mutex::new(None),
            failures: Mutex::new(HashMap::new()),
            dereferencer: Dereferencer {
                client: client.clone(),
                images,
                kernels,
                artifacts,
                secrets: SecretWaits::new(client.clone(), secret_wake),
            },
            client,
            node: config.node.clone(),
            machines,
            records,
            memories: Mutex::new(HashMap::new()),
            own_writes: OwnWrites::default(),
            names: Mutex::new(HashMap::new()),
            metrics,
        };
        Ok(Self {
            config,
            cx: Arc::new(cx),
            images: image_writer,
            kernels: kernel_writer,
            secret_wakes,
        })
    }

    /// Runs until `shutdown`. VMs run on afterwards.
    ///
    /// `artifact_wakes` and `machine_wakes` carry uids of VMs. `ready` is called once the agent serves.
    ///
    /// # Errors
    /// When the API is not the one that the data directory belongs to, or the watch ends.
    pub async fn run(
        self,
        artifact_wakes: mpsc::Receiver<String>,
        machine_wakes: mpsc::Receiver<String>,
        shutdown: CancellationToken,
        ready: impl FnOnce(),
    ) -> Result<(), AgentError> {
        if !self.claim(&shutdown).await? {
            return Ok(());
        }
        let api: Api<VirtualMachine> = Api::all(self.cx.client.clone());
        let (reader, writer) = reflector::store();
        let watch = WatchConfig::default().fields(&format!("spec.nodeName={}", self.cx.node));
        // Not `Store::wait_until_ready`: of those who wait for one store, kube 5.0 wakes only the last, and the
        // controller waits as well.
        let listed = CancellationToken::new();
        let complete = listed.clone();
        let (status_wake, status_wakes) = mpsc::channel(STATUS_WAKES);
        let seen = Arc::clone(&self.cx);
        let stream = watcher(api, watch)
            .default_backoff()
            .modify(|vm| vm.managed_fields_mut().clear())
            .reflect(writer)
            .inspect_ok(move |event| {
                if matches!(event, watcher::Event::InitDone) {
                    complete.cancel();
                }
            })
            .applied_objects()
            .then(move |vm| {
                let (cx, wake) = (Arc::clone(&seen), status_wake.clone());
                async move {
                    if let Some(uid) = foreign(vm.as_ref().ok(), &cx) {
                        let _ = wake.send(uid).await;
                    }
                    vm
                }
            })
            .predicate_filter(generation.combine(finalizers), Default::default());
        let wakes = [artifact_wakes, machine_wakes, self.secret_wakes, status_wakes].map(ReceiverStream::new);
        let wakes = futures::stream::select_all(wakes);
        let names = Arc::clone(&self.cx);
        let wakes = wakes.filter_map(move |uid| {
            let found = names
                .names
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&uid)
                .cloned();
            async move { found }
        });
        let (back, returned) = mpsc::channel(1);
        let (of_images, of_kernels) = (reader.clone(), reader.clone());
        let known = housekeeping::Known {
            vms: reader.clone(),
            listed,
        };
        let controller = Controller::for_stream(stream, reader)
            .with_config(ControllerConfig::default().concurrency(CONCURRENCY))
            .watches_stream(remembered(&self.cx.client, self.images), move |image: Image| {
                dependants(&of_images, &image.namespace().unwrap_or_default(), |vm| {
                    vm.spec.image_ref.name == image.name_any()
                })
            })
            .watches_stream(remembered(&self.cx.client, self.kernels), move |kernel: Kernel| {
                // A VM without a kernelRef may use this kernel through its image.
                dependants(&of_kernels, &kernel.namespace().unwrap_or_default(), |vm| {
                    vm.spec.kernel_ref.as_ref().is_none_or(|r| r.name == kernel.name_any())
                })
            })
            .reconcile_on(wakes)
            .reconcile_all_on(ReceiverStream::new(returned))
            .graceful_shutdown_on(shutdown.clone().cancelled_owned())
            .run(reconcile, error_policy, Arc::clone(&self.cx));
        let mut controller = std::pin::pin!(controller);

        let heartbeat = tokio::spawn(beat(
            Arc::clone(&self.cx),
            self.config.facts.clone(),
            back,
            shutdown.clone(),
        ));
        let sweep = tokio::spawn(sweep(Arc::clone(&self.cx), shutdown.clone()));
        let tidy = tokio::spawn({
            let (cx, shutdown) = (Arc::clone(&self.cx), shutdown.clone());
            let (dir, keep) = (self.config.data_dir.clone(), self.config.keep_unused);
            async move { housekeeping::run(&cx, known, &dir, keep, shutdown).await }
        });
        ready();
        while let Some(result) = controller.next().await {
            if let Err(error) = result {
                tracing::debug!(%error, "reconcile");
            }
        }
        heartbeat.abort();
        sweep.abort();
        tidy.abort();
        if shutdown.is_cancelled() {
            Ok(())
        } else {
            Err(AgentError::WatchEnded)
        }
    }

    /// Waits for the API and makes sure that it is the one that the data directory belongs to.
    /// `false`: shut down meanwhile.
    async fn claim(&self, shutdown: &CancellationToken) -> Result<bool, AgentError> {
        let api: Api<Namespace> = Api::all(self.cx.client.clone());
        let mut told = false;
        loop {
            match api.get("kube-system").await {
                Ok(namespace) => {
                    let found = namespace.uid().unwrap_or_default();
                    let dir = &self.config.data_dir;
                    let claim = identity::claim_api(dir, &found).map_err(|error| AgentError::DataDir {
                        dir: dir.clone(),
                        error,
                    })?;
                    return match claim {
                        Ok(()) => Ok(true),
                        Err(owner) => Err(AgentError::ForeignApi {
                            dir: dir.clone(),
                            owner,
                            found,
                        }),
                    };
                }
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(
                        error = vmlet_crds::in_words(&error),
                        "the API does not answer; machines run on, and the agent waits for it"
                    );
                }
                Err(_) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(false),
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
            }
        }
    }
}

/// The uid of a VM whose status somebody else wrote.
fn foreign(vm: Option<&VirtualMachine>, cx: &Context) -> Option<String> {
    let vm = vm.filter(|vm| cx.own_writes.is_foreign(vm))?;
    let (namespace, name) = (vm.namespace().unwrap_or_default(), vm.name_any());
    cx.metrics.foreign_status();
    tracing::warn!(%namespace, %name, "somebody else wrote the status of this virtual machine; it is put right");
    vm.uid()
}

/// All objects of a kind as they change or go, each after the store knows it.
fn remembered<K>(client: &Client, store: Writer<K>) -> impl Stream<Item = watcher::Result<K>> + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    watcher(Api::<K>::all(client.clone()), WatchConfig::default())
        .modify(|object| object.meta_mut().managed_fields = None)
        .reflect(store)
        .touched_objects()
}

fn dependants(
    store: &reflector::Store<VirtualMachine>,
    namespace: &str,
    refers: impl Fn(&VirtualMachine) -> bool,
) -> Vec<ObjectRef<VirtualMachine>> {
    store
        .state()
        .iter()
        .filter(|vm| vm.namespace().as_deref() == Some(namespace) && refers(vm))
        .map(|vm| ObjectRef::from_obj(vm.as_ref()))
        .collect()
}

/// Describes the node at each heartbeat. After a silence that made the node count as lost, the status of its
/// VMs is the controller's: `back` has all of them looked at again.
async fn beat(cx: Arc<Context>, facts: NodeFacts, back: mpsc::Sender<()>, shutdown: CancellationToken) {
    let mut last = tokio::time::Instant::now();
    let mut conditions: Vec<Condition> = Vec::new();
    let mut eager = BTreeSet::new();
    let mut timer = tokio::time::interval(vmnode::HEARTBEAT);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = timer.tick() => {}
        }
        match vmnode::heartbeat(&cx, &facts, &mut conditions).await {
            Ok(()) => {
                cx.metrics.heartbeat_written();
                // Full: they are about to be looked at anyway.
                if last.elapsed() >= vmnode::LOST {
                    let _ = back.try_send(());
                }
                last = tokio::time::Instant::now();
            }
            Err(error) => tracing::warn!(error = vmlet_crds::in_words(&error), "heartbeat was not written"),
        }
        if let Err(error) = vmnode::pull_eagerly(&cx, &facts, &mut eager).await {
            tracing::warn!(error = vmlet_crds::in_words(&error), "eager images could not be listed");
        }
    }
}

async fn sweep(cx: Arc<Context>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => orphans::sweep(&cx).await,
        }
    }
}
