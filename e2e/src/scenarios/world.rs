//! What all scenarios share: API, registry, controller, agent, data directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use tempfile::TempDir;
use tokio::sync::Mutex;
use vmlet_crds::VMNode;
use vmlet_e2e::controlplane::ControlPlane;
use vmlet_e2e::layout::Artifact;
use vmlet_e2e::process::{self, Process, free_port};
use vmlet_e2e::registry::Registry;
use vmlet_e2e::wait::{self, Seen};

use crate::{ApiKind, Settings, agent};

/// Name of the node.
const NODE: &str = "e2e";
const START_LIMIT: Duration = Duration::from_secs(90);

/// Everything that scenarios share. Ended by [`World::end`].
pub struct World {
    /// The command line.
    pub settings: Settings,
    /// A client of the API.
    pub client: Client,
    /// The registry.
    pub registry: Registry,
    /// The guest's image, to be pushed under other names.
    pub guest: Artifact,
    /// The kernel, likewise.
    pub kernel: Artifact,
    agent: Mutex<Option<Process>>,
    _controller: Option<Process>,
    _api: Option<ControlPlane>,
    dir: TempDir,
}

impl World {
    /// Starts all of it and waits until it is ready.
    pub async fn start(mut settings: Settings) -> Result<Arc<World>> {
        settings.vmlet = std::path::absolute(&settings.vmlet)?;
        ensure!(settings.vmlet.is_file(), "{} does not exist", settings.vmlet.display());
        settings.port = free_port()?;
        let _ = std::fs::remove_dir_all(&settings.output);
        std::fs::create_dir_all(&settings.output)?;
        let dir = tempfile::Builder::new().prefix("vmlet-e2e.").tempdir()?;
        let registry = Registry::start().await?;
        let guest = Artifact::read(&settings.guest).context("run scripts/guest-image")?;
        let kernel = Artifact::read(&settings.kernel).context("run scripts/e2e, which packages a kernel")?;
        guest
            .clone()
            .push(&format!("{}/guest:latest", registry.address()))
            .await?;
        kernel
            .clone()
            .push(&format!("{}/kernel:latest", registry.address()))
            .await?;

        let kubeconfig = dir.path().join("kubeconfig");
        let (api, controller, agent) = match settings.api {
            ApiKind::Real => {
                let api = ControlPlane::start().await?;
                write_private(&kubeconfig, api.kubeconfig())?;
                apply_crds(&vmlet_e2e::client(api.kubeconfig()).await?).await?;
                let mut command = Command::new(&settings.vmlet);
                command
                    .args(["controller", "--data-dir"])
                    .arg(data_dir(&dir))
                    .arg("--kubeconfig")
                    .arg(&kubeconfig);
                let controller = Process::spawn("vmlet controller", command, &settings.output.join("controller.log"))?;
                (Some(api), Some(controller), None)
            }
            // It writes the kubeconfig, so it has to run before there can be a client.
            ApiKind::Standalone => {
                let agent = start_agent(&settings, &dir).await?;
                (None, None, Some(agent))
            }
        };
        let client = vmlet_e2e::client(&std::fs::read_to_string(&kubeconfig)?).await?;
        let agent = match agent {
            Some(agent) => agent,
            None => start_agent(&settings, &dir).await?,
        };
        let world = World {
            settings,
            client,
            registry,
            guest,
            kernel,
            agent: Mutex::new(Some(agent)),
            _controller: controller,
            _api: api,
            dir,
        };
        world.node_ready().await?;
        Ok(Arc::new(world))
    }

    /// The data directory of the agent.
    pub fn data(&self) -> PathBuf {
        data_dir(&self.dir)
    }

    /// The agent's log.
    pub fn agent_log(&self) -> PathBuf {
        agent_log(&self.settings)
    }

    /// Ends the agent as a power cut would: with SIGKILL.
    pub async fn kill_agent(&self) -> Result<()> {
        if let Some(mut agent) = self.agent.lock().await.take() {
            agent.kill()?;
        }
        Ok(())
    }

    /// Starts the agent again.
    pub async fn start_agent(&self) -> Result<()> {
        let mut agent = self.agent.lock().await;
        if agent.is_none() {
            *agent = Some(start_agent(&self.settings, &self.dir).await?);
        }
        Ok(())
    }

    /// Why the agent does not run, if it does not.
    pub async fn agent_trouble(&self) -> Option<String> {
        match self.agent.lock().await.as_mut() {
            None => Some("the agent is stopped".into()),
            Some(agent) => agent.check().err().map(|error| format!("{error:#}")),
        }
    }

    /// A command line of an agent with the data directory of the real one.
    pub fn second_agent(&self) -> Command {
        agent_command(&self.settings, &self.dir)
    }

    async fn node_ready(&self) -> Result<()> {
        let nodes: Api<VMNode> = Api::all(self.client.clone());
        wait::until("the VMNode is Ready", START_LIMIT, || async {
            let node = nodes.get_opt(NODE).await?;
            let conditions = node
                .and_then(|node| node.status)
                .map(|s| s.conditions)
                .unwrap_or_default();
            let ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
            Ok(if ready {
                Seen::Done(())
            } else {
                Seen::NotYet(format!("{conditions:?}"))
            })
        })
        .await
    }

    /// Ends everything. Machines that are left (of scenarios that failed) are killed.
    pub async fn end(&self) {
        if let Some(agent) = self.agent.lock().await.take() {
            drop(agent);
        }
        for pid in vmms(&self.data()) {
            process::signal(pid, libc::SIGKILL);
        }
    }
}

/// Process ids of VMMs whose machine has a directory here.
pub fn vmms(data: &Path) -> Vec<u32> {
    let uids: Vec<String> = machines(data);
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            command.contains("qemu") && uids.iter().any(|uid| command.contains(uid.as_str()))
        })
        .collect()
}

/// Uids of the machines that have a directory here.
pub fn machines(data: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(data.join("machines")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.len() == 36)
        .collect()
}

fn data_dir(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

fn agent_log(settings: &Settings) -> PathBuf {
    settings.output.join("agent.log")
}

fn agent_command(settings: &Settings, dir: &TempDir) -> Command {
    let kubeconfig = dir.path().join("kubeconfig");
    let mut command = Command::new(&settings.vmlet);
    command.env_remove("KUBECONFIG");
    match settings.api {
        ApiKind::Real => {
            command.arg("agent").arg("--kubeconfig").arg(kubeconfig);
        }
        ApiKind::Standalone => {
            // The same each time: clients go on with the kubeconfig that they have.
            let listen = format!("127.0.0.1:{}", settings.port);
            command
                .args(["standalone", "--listen", &listen, "--write-kubeconfig"])
                .arg(kubeconfig);
        }
    }
    // Unused images and kernels go at each start of the agent, so that what is still used is put to the test.
    command
        .args(["--node-name", NODE, "--keep-unused-days", "0", "--data-dir"])
        .arg(data_dir(dir));
    command
}

async fn start_agent(settings: &Settings, dir: &TempDir) -> Result<Process> {
    agent::start("vmlet agent", &agent_log(settings), || agent_command(settings, dir)).await
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

async fn apply_crds(client: &Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in vmlet_crds::all() {
        let name = crd.name_any();
        api.patch(&name, &PatchParams::apply("vmlet-e2e"), &Patch::Apply(&crd))
            .await?;
        wait::until(&format!("CRD {name} is served"), START_LIMIT, || async {
            let conditions = api
                .get(&name)
                .await?
                .status
                .and_then(|s| s.conditions)
                .unwrap_or_default();
            let served = conditions
                .iter()
                .any(|c| c.type_ == "Established" && c.status == "True");
            Ok(if served {
                Seen::Done(())
            } else {
                Seen::NotYet(format!("{conditions:?}"))
            })
        })
        .await?;
    }
    Ok(())
}
