//! What a scenario works with: a namespace, objects in it, and waits.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vmlet_crds::{Image, Kernel, VirtualMachine};
use vmlet_e2e::layout::Artifact;
use vmlet_e2e::wait::{self, Seen};

use crate::vm;
use crate::watched::Watched;
use crate::world::World;

/// How long a scenario waits for a state. A boot takes seconds, and minutes where many share a processor.
pub const LIMIT: Duration = Duration::from_secs(180);

/// Something that was pushed for one scenario.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Its repository.
    pub repository: String,
    /// HOST:PORT/REPOSITORY:latest.
    pub reference: String,
    /// Digest of its last layer.
    pub payload: String,
    /// Number of its blobs.
    pub blobs: usize,
}

impl Pushed {
    /// Its reference behind a proxy.
    pub fn reference_at(&self, address: &str) -> String {
        format!("{address}/{}:latest", self.repository)
    }
}

/// A scenario's hold on the world. Cheap to clone.
#[derive(Clone)]
pub struct Cx(Arc<Inner>);

struct Inner {
    world: Arc<World>,
    namespace: String,
    output: PathBuf,
    /// Length of the agent's log when the scenario began.
    log_start: usize,
    watched: Watched,
    note: Mutex<String>,
}

impl Cx {
    /// A namespace named after the scenario, with the kernel that all share in it.
    pub async fn new(world: Arc<World>, name: &str) -> Result<Cx> {
        let output = world.settings.output.join(name);
        std::fs::create_dir_all(&output)?;
        let namespaces: Api<Namespace> = Api::all(world.client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        namespaces.create(&PostParams::default(), &namespace).await?;
        let watched = Watched::start(world.client.clone(), name, &output.join("history"))?;
        let log_start = std::fs::metadata(world.agent_log()).map_or(0, |m| m.len());
        let cx = Cx(Arc::new(Inner {
            namespace: name.to_owned(),
            output,
            log_start: usize::try_from(log_start)?,
            watched,
            note: Mutex::default(),
            world,
        }));
        let kernel = format!("{}/kernel:latest", cx.world().registry.address());
        cx.kernel("kernel", &kernel).await?;
        Ok(cx)
    }

    /// What all scenarios share.
    pub fn world(&self) -> &World {
        &self.0.world
    }

    /// A client of the API.
    pub fn client(&self) -> Client {
        self.0.world.client.clone()
    }

    /// The scenario's namespace, which has its name.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// Where its output is kept.
    pub fn output(&self) -> &Path {
        &self.0.output
    }

    /// Length of the agent's log when the scenario began.
    pub fn log_start(&self) -> usize {
        self.0.log_start
    }

    /// The machines as the watch shows them.
    pub fn watched(&self) -> &Watched {
        &self.0.watched
    }

    /// Something measured, to be printed beside the result.
    pub fn remark(&self, text: String) {
        *self.0.note.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// What was remarked.
    pub fn note(&self) -> String {
        self.0.note.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Objects of a kind in the scenario's namespace.
    pub fn api<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.client(), self.namespace())
    }

    /// Creates an object of a kind with this spec.
    pub async fn create<K>(&self, name: &str, spec: Value) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug,
    {
        let object = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()),
            "metadata": {"name": name}, "spec": spec,
        });
        let object: K = serde_json::from_value(object)?;
        self.api::<K>()
            .create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("create {} {name}", K::kind(&())))
    }

    /// Creates a Kernel.
    pub async fn kernel(&self, name: &str, reference: &str) -> Result<Kernel> {
        self.create(name, json!({"source": {"oci": {"reference": reference}}}))
            .await
    }

    /// Creates an Image.
    pub async fn image(&self, name: &str, reference: &str) -> Result<Image> {
        self.create(name, json!({"source": {"oci": {"reference": reference}}}))
            .await
    }

    /// Creates the Image "guest" of the guest that all scenarios share.
    pub async fn guest(&self) -> Result<Image> {
        let reference = format!("{}/guest:latest", self.world().registry.address());
        self.image("guest", &reference).await
    }

    /// Pushes a guest image that nothing else has a byte of.
    pub async fn push_guest(&self, name: &str, size: usize) -> Result<Pushed> {
        let repository = format!("{}-{name}", self.namespace());
        let guest = self.world().guest.clone().made_unique(&repository)?;
        self.push(guest.with_file("payload", size, &repository)?, repository)
            .await
    }

    /// Pushes a kernel that nothing else has a byte of.
    pub async fn push_kernel(&self, name: &str) -> Result<Pushed> {
        let repository = format!("{}-{name}", self.namespace());
        self.push(self.world().kernel.clone().made_unique(&repository)?, repository)
            .await
    }

    async fn push(&self, artifact: Artifact, repository: String) -> Result<Pushed> {
        let reference = format!("{}/{repository}:latest", self.world().registry.address());
        let pushed = Pushed {
            payload: artifact.last_layer().context("it has no layer")?,
            blobs: artifact.blobs(),
            reference,
            repository,
        };
        artifact.push(&pushed.reference).await?;
        Ok(pushed)
    }

    /// Fails unless each blob of a repository was transferred exactly once.
    pub fn one_get_each(&self, repository: &str, blobs: usize) -> Result<()> {
        let gets = self.world().registry.blob_gets(repository);
        ensure!(
            gets.len() == blobs && gets.values().all(|n| *n == 1),
            "each of {blobs} blobs of {repository} should have been fetched once, and this was fetched: {gets:?}"
        );
        Ok(())
    }

    /// The directory of what is published from a repository ("images" or "kernels").
    pub fn published(&self, kind: &str, repository: &str) -> Result<Option<PathBuf>> {
        for dir in std::fs::read_dir(self.world().data().join("artifacts").join(kind))?.flatten() {
            let record = std::fs::read_to_string(dir.path().join("record.json")).unwrap_or_default();
            if record.contains(&format!("/{repository}:")) {
                return Ok(Some(dir.path()));
            }
        }
        Ok(None)
    }

    /// Creates a machine.
    pub async fn machine(&self, name: &str, spec: Value) -> Result<VirtualMachine> {
        self.create(name, spec).await
    }

    /// Merges a change into a machine's spec.
    pub async fn change(&self, name: &str, spec: Value) -> Result<()> {
        self.api::<VirtualMachine>()
            .patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec})))
            .await
            .with_context(|| format!("change {name}"))?;
        Ok(())
    }

    /// Asks for the deletion of a machine and does not wait for it.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.api::<VirtualMachine>()
            .delete(name, &DeleteParams::default())
            .await?;
        Ok(())
    }

    /// Waits until a machine's object is gone.
    pub async fn gone(&self, name: &str) -> Result<()> {
        self.watched()
            .until(name, "it is gone", LIMIT, |vm| Ok(vm.is_none().then_some(())))
            .await
    }

    /// Waits for a state of a machine and returns the machine in it. An error of `judge` ends the wait.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        mut judge: impl FnMut(&VirtualMachine) -> Result<bool>,
    ) -> Result<VirtualMachine> {
        let seen = |vm: Option<&VirtualMachine>| match vm {
            Some(vm) => Ok(judge(vm)?.then(|| vm.clone())),
            None => Ok(None),
        };
        self.watched().until(name, what, LIMIT, seen).await
    }

    /// Waits until a machine is Ready.
    pub async fn ready(&self, name: &str) -> Result<VirtualMachine> {
        // The boot id may be told a moment later.
        let known = |vm: &VirtualMachine| Ok(vm::ready(vm)? && vm::boot_id(vm).is_some());
        self.until(name, "it is Ready, with a boot id", known).await
    }

    /// Waits until the console of a machine's present run has this text.
    pub async fn console(&self, vm: &VirtualMachine, text: &str) -> Result<()> {
        let uid = vm.uid().context("no uid")?;
        let file = self.world().data().join("machines").join(uid).join("console.log");
        wait::until(
            &format!("{text:?} on the console of {}", vm.name_any()),
            LIMIT,
            || async {
                let console = String::from_utf8_lossy(&std::fs::read(&file)?).into_owned();
                Ok(if console.contains(text) {
                    Seen::Done(())
                } else {
                    let lines: Vec<&str> = console.lines().collect();
                    Seen::NotYet(lines[lines.len().saturating_sub(5)..].join("\n"))
                })
            },
        )
        .await
    }

    /// The events about an object, by reason and note.
    pub async fn events(&self, name: &str) -> Result<Vec<(String, String, String)>> {
        let events = self.api::<Event>().list(&ListParams::default()).await?;
        Ok(events
            .items
            .into_iter()
            .filter(|e| e.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(name))
            .map(|e| {
                (
                    e.type_.unwrap_or_default(),
                    e.reason.unwrap_or_default(),
                    e.note.unwrap_or_default(),
                )
            })
            .collect())
    }

    /// Waits until an event about an object has this reason, and says its note.
    pub async fn event(&self, name: &str, reason: &str) -> Result<String> {
        wait::until(&format!("event {reason} about {name}"), LIMIT, || async {
            let events = self.events(name).await?;
            Ok(match events.iter().find(|(_, r, _)| r == reason) {
                Some((_, _, note)) => Seen::Done(note.clone()),
                None => Seen::NotYet(format!("{events:?}")),
            })
        })
        .await
    }

    /// Fails when anything of a machine is on the node: its directory, a VMM, a pin.
    pub fn nothing_of(&self, uid: &str) -> Result<()> {
        let data = self.world().data();
        let dir = data.join("machines").join(uid);
        ensure!(!dir.exists(), "{} is still there", dir.display());
        let record = data.join("node/vms").join(format!("{uid}.json"));
        ensure!(!record.exists(), "{} is still there", record.display());
        for pin in std::fs::read_dir(data.join("artifacts/pins"))?.flatten() {
            let text = std::fs::read_to_string(pin.path()).unwrap_or_default();
            ensure!(
                !text.contains(uid),
                "pin {} is still there: {text}",
                pin.path().display()
            );
        }
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            ensure!(
                !(command.contains("qemu") && command.contains(uid)),
                "{} is still there: {command}",
                entry.path().display()
            );
        }
        Ok(())
    }

    /// Deletes the scenario's machines, waits until nothing of them is left, and then the namespace.
    pub async fn clean_up(&self) -> Result<()> {
        self.world().start_agent().await?;
        let machines = self.api::<VirtualMachine>();
        let found = machines.list(&ListParams::default()).await?.items;
        for vm in &found {
            let uid = vm.uid().unwrap_or_default();
            for log in ["console.log", "console.log.1", "vmm.log"] {
                let from = self.world().data().join("machines").join(&uid).join(log);
                // A machine that was never started has none.
                let _ = std::fs::copy(from, self.output().join(format!("{}.{log}", vm.name_any())));
            }
            // Nothing in it is needed any more.
            let now = json!({"spec": {"terminationGracePeriodSeconds": 0}});
            let changed = machines
                .patch(&vm.name_any(), &PatchParams::default(), &Patch::Merge(now))
                .await;
            let deleted = machines.delete(&vm.name_any(), &DeleteParams::default()).await;
            for error in [changed.err(), deleted.err()].into_iter().flatten() {
                match error {
                    kube::Error::Api(status) if status.is_not_found() => {}
                    error => bail!("delete {}: {error}", vm.name_any()),
                }
            }
        }
        for vm in &found {
            self.gone(&vm.name_any()).await?;
            self.nothing_of(&vm.uid().unwrap_or_default())?;
        }
        let namespaces: Api<Namespace> = Api::all(self.client());
        namespaces.delete(self.namespace(), &DeleteParams::default()).await?;
        Ok(())
    }
}

/// The spec of a small machine that runs a shell script once, from the Image and Kernel of these names.
pub fn script(image: &str, script: &str) -> Value {
    json!({
        "runStrategy": "Once",
        "imageRef": {"name": image},
        "kernelRef": {"name": "kernel"},
        "memory": {"size": "128Mi"},
        "guest": {"init": "Entrypoint", "command": ["/bin/sh", "-c", script]},
    })
}

/// A public key, without a comment. Nobody has the private one.
pub const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4Zl3uGqYQ5tq2wzWTo9mJ3j5hS1Uz6cJ7nqkQ2yqfB";

/// The same for one that is to go on: started again whenever it ends.
pub fn service(image: &str, text: &str) -> Value {
    let mut spec = script(image, text);
    spec["runStrategy"] = "Always".into();
    spec
}
