//! `vmlet standalone` with a registry of its own, in a temporary directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};
use tempfile::TempDir;
use vmlet_crds::{Image, Kernel, VirtualMachine};
use vmlet_e2e::process::{Process, signal};
use vmlet_e2e::registry::Registry;
use vmlet_e2e::wait::{self, Seen};
use vmlet_e2e::{client_without_retries, layout};

use crate::procfs;

/// How long a machine may take to be ready, while others boot beside it without KVM.
const BOOT: Duration = Duration::from_secs(600);
/// How long anything else may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A running `vmlet standalone`.
pub struct Server {
    process: Process,
    /// A client for its API, over TLS as any other.
    pub client: kube::Client,
    /// From its start until its API could be used.
    pub startup: Duration,
}

impl Server {
    /// Starts it on a data directory and waits until its API is served.
    pub async fn start(vmlet: &Path, dir: &Path) -> Result<Server> {
        let kubeconfig = dir.join("kubeconfig");
        let _ = std::fs::remove_file(&kubeconfig);
        let mut command = Command::new(vmlet);
        command
            .args([
                "standalone",
                "--node-name",
                "bench",
                "--listen",
                "127.0.0.1:0",
                "--data-dir",
            ])
            .arg(dir.join("data"))
            .arg("--write-kubeconfig")
            .arg(&kubeconfig);
        let started = Instant::now();
        let mut process = Process::spawn("vmlet standalone", command, &dir.join("vmlet.log"))?;
        let text = loop {
            if let Ok(text) = std::fs::read_to_string(&kubeconfig) {
                break text;
            }
            process.check()?;
            anyhow::ensure!(
                started.elapsed() < LIMIT,
                "vmlet standalone serves no API: {}",
                process.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let startup = started.elapsed();
        let client = client_without_retries(&text).await?;
        Ok(Server {
            process,
            client,
            startup,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// A node: registry, images, `vmlet standalone`. Dropping it ends the machines that are left.
pub struct Node {
    vmlet: PathBuf,
    server: Option<Server>,
    _registry: Registry,
    dir: TempDir,
    /// Whether there is a large image.
    pub has_large: bool,
}

impl Node {
    /// Starts everything, and runs one machine once: then image and kernel are present.
    pub async fn start(vmlet: &Path, guest: &Path, kernel: &Path, large: Option<&Path>) -> Result<Node> {
        let registry = Registry::start().await?;
        let address = registry.address();
        layout::push(guest, &format!("{address}/guest:latest")).await?;
        layout::push(kernel, &format!("{address}/kernel:latest")).await?;
        if let Some(large) = large {
            layout::push(large, &format!("{address}/large:latest")).await?;
        }
        let dir = tempfile::Builder::new().prefix("vmlet-bench.").tempdir()?;
        let server = Server::start(vmlet, dir.path()).await?;
        let node = Node {
            vmlet: vmlet.to_owned(),
            server: Some(server),
            _registry: registry,
            dir,
            has_large: large.is_some(),
        };
        let client = node.client()?;
        let kernel = json!({
            "apiVersion": "vmlet.dev/v1alpha1", "kind": "Kernel", "metadata": {"name": "kernel"},
            "spec": {"source": {"oci": {"reference": format!("{address}/kernel:latest")}}},
        });
        Api::<Kernel>::default_namespaced(client.clone())
            .create(&PostParams::default(), &serde_json::from_value(kernel)?)
            .await?;
        for name in ["guest", "large"] {
            let image = json!({
                "apiVersion": "vmlet.dev/v1alpha1", "kind": "Image", "metadata": {"name": name},
                "spec": {
                    "source": {"oci": {"reference": format!("{address}/{name}:latest")}},
                    "kernelRef": {"name": "kernel"},
                },
            });
            if name == "guest" || large.is_some() {
                Api::<Image>::default_namespaced(client.clone())
                    .create(&PostParams::default(), &serde_json::from_value(image)?)
                    .await?;
            }
        }
        eprintln!("bench: the first machine pulls image and kernel");
        node.create("first", "guest").await?;
        node.ready("first").await?;
        node.delete("first").await?;
        Ok(node)
    }

    /// The running server.
    pub fn server(&self) -> Result<&Server> {
        self.server.as_ref().context("vmlet standalone does not run")
    }

    fn client(&self) -> Result<kube::Client> {
        Ok(self.server()?.client.clone())
    }

    /// The machines.
    pub fn machines(&self) -> Result<Api<VirtualMachine>> {
        Ok(Api::default_namespaced(self.client()?))
    }

    /// Creates a machine.
    pub async fn create(&self, name: &str, image: &str) -> Result<VirtualMachine> {
        Ok(self
            .machines()?
            .create(&PostParams::default(), &machine(name, image)?)
            .await?)
    }

    /// Waits until a machine is ready.
    pub async fn ready(&self, name: &str) -> Result<()> {
        let machines = self.machines()?;
        wait::until(&format!("{name} is ready"), BOOT, || async {
            let status = machines.get(name).await?.status.unwrap_or_default();
            Ok(wait::when(status, |status| {
                status
                    .conditions
                    .iter()
                    .any(|c| c.type_ == "Ready" && c.status == "True")
            }))
        })
        .await?;
        Ok(())
    }

    /// Deletes a machine and waits until it is gone.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let machines = self.machines()?;
        machines.delete(name, &DeleteParams::default()).await?;
        wait::until(&format!("{name} is gone"), LIMIT, || async {
            Ok(match machines.get_opt(name).await? {
                None => Seen::Done(()),
                Some(vm) => Seen::NotYet(format!("{:?}", vm.status)),
            })
        })
        .await
    }

    /// Kills the server (-9) and starts it again. The machines run on.
    pub async fn restart(&mut self) -> Result<Duration> {
        if let Some(mut server) = self.server.take() {
            server.process.kill()?;
        }
        let server = Server::start(&self.vmlet, self.dir.path()).await?;
        let startup = server.startup;
        self.server = Some(server);
        Ok(startup)
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("vmlet.log")).unwrap_or_default()
    }

    /// Uids of the machines that have anything on this node.
    pub fn uids(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.dir.path().join("data/machines")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.len() == 36)
            .collect()
    }

    /// Deletes all machines.
    pub async fn end(self) -> Result<()> {
        for vm in self.machines()?.list(&kube::api::ListParams::default()).await? {
            self.delete(&vm.metadata.name.unwrap_or_default()).await?;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let uids = self.uids();
        self.server = None;
        for pid in procfs::vmms(&uids) {
            signal(pid, libc::SIGKILL);
        }
    }
}

fn machine(name: &str, image: &str) -> Result<VirtualMachine> {
    let guest: Value = match image {
        // A large image is a distribution without a program of its own.
        "large" => json!({"init": "Entrypoint", "command": ["/bin/sleep", "1000000"]}),
        _ => json!({}),
    };
    let vm = json!({
        "apiVersion": "vmlet.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": name},
        "spec": {
            "imageRef": {"name": image},
            "cpu": {"count": 1},
            "memory": {"size": "128Mi"},
            "rootDisk": {"size": if image == "large" { "4Gi" } else { "1Gi" }},
            "interfaces": [{"name": "main", "nat": {"ports": [{"name": "ssh", "guestPort": 22}]}}],
            "guest": guest,
            "terminationGracePeriodSeconds": 0,
        },
    });
    Ok(serde_json::from_value(vm)?)
}
