//! Puts an agent (and a controller) together: the one place that knows all the crates.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::Client;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::pipeline::Pipeline;
use vmlet_artifacts::registry::config::Registries;
use vmlet_artifacts::types::{Config as ArtifactsConfig, Interest, Limits};
use vmlet_cluster::leader;
use vmlet_machines::{HostFacts, Level, Machines};
use vmlet_node::agent::{NodeCondition, NodeFacts};
use vmlet_node::{Agent, AgentConfig};

use crate::admin::{Admin, Step};
use crate::cli::{self, NodeArgs};

/// Wake-ups that may be on their way at once; a sender waits beyond that. One per VM is plenty.
const WAKES: usize = 1024;
/// Memory that is left to the machine itself by default, in bytes.
const RESERVED_MEMORY: u64 = 1 << 30;

/// Everything of a node that is open.
pub struct Node {
    /// The artefacts.
    pub artifacts: Artifacts,
    /// The machines, running ones adopted.
    pub machines: Machines,
    /// Wake-ups, by who asked.
    pub wakes: Wakes,
    /// Held as long as the agent lives.
    _lock: std::fs::File,
}

/// Wake-ups, by who asked.
pub struct Wakes {
    /// For VMs, from artefacts.
    pub vms: mpsc::Receiver<String>,
    /// For Images.
    pub images: mpsc::Receiver<String>,
    /// For Kernels.
    pub kernels: mpsc::Receiver<String>,
    /// For VMs, from machines.
    pub machines: mpsc::Receiver<String>,
}

/// Locks and opens a data directory: adopts the machines that run, sweeps what is left over.
pub async fn open(args: &NodeArgs, admin: &Admin) -> Result<Node> {
    let dir = &args.data_dir;
    let registries = crate::registries::open(&args.registries)?;
    let lock = lock(dir)?;
    admin.done(Step::DataDirectory);
    let (machine_wake, machines_rx) = mpsc::channel(WAKES);
    let machines = Machines::open(vmlet_machines::Config::new(dir.join("machines")), machine_wake)
        .await
        .with_context(|| format!("machines below {}", dir.display()))?;
    admin.done(Step::Machines);
    let (artifacts, [vms, images, kernels]) = open_artifacts(
        dir,
        args.import_dir.as_deref(),
        usize::from(args.max_parallel_pulls),
        args.limits(),
        registries,
    )
    .await?;
    admin.done(Step::Artifacts);
    Ok(Node {
        artifacts,
        machines,
        wakes: Wakes {
            vms,
            images,
            kernels,
            machines: machines_rx,
        },
        _lock: lock,
    })
}

fn lock(dir: &Path) -> Result<std::fs::File> {
    match vmlet_node::lock_data_dir(dir).with_context(|| format!("data directory {}", dir.display()))? {
        Some(lock) => Ok(lock),
        None => {
            let holder = vmlet_node::lock_holder(dir)
                .map(|pid| format!(" (process {pid})"))
                .unwrap_or_default();
            bail!(
                "another vmlet{holder} uses {}: stop it, or give this one another --data-dir",
                dir.display()
            )
        }
    }
}

/// Opens the artefacts and splits their wake-ups by who asked: VMs, Images, Kernels.
async fn open_artifacts(
    dir: &Path,
    import_dir: Option<&Path>,
    parallel: usize,
    limits: Limits,
    registries: Registries,
) -> Result<(Artifacts, [mpsc::Receiver<String>; 3])> {
    let mut config = ArtifactsConfig::new(dir.join("artifacts"));
    config.import_dir = import_dir.map(Path::to_path_buf);
    config.max_parallel_pulls = parallel;
    config.limits = limits;
    config.registries = registries;
    let (wake, mut woken) = mpsc::channel::<Interest>(WAKES);
    let pipeline = Pipeline::new(&config)?;
    let artifacts = Artifacts::open_with(&config, Arc::new(pipeline), wake)
        .await
        .with_context(|| format!("images and kernels below {}", dir.display()))?;
    let (vm_tx, vms) = mpsc::channel(WAKES);
    let (image_tx, images) = mpsc::channel(WAKES);
    let (kernel_tx, kernels) = mpsc::channel(WAKES);
    tokio::spawn(async move {
        while let Some(Interest(who)) = woken.recv().await {
            let to = match who.split_once('/') {
                Some(("vm", uid)) => Some((&vm_tx, uid)),
                Some(("image", uid)) => Some((&image_tx, uid)),
                Some(("kernel", uid)) => Some((&kernel_tx, uid)),
                _ => None,
            };
            // A receiver that is gone is shutting down.
            if let Some((to, uid)) = to
                && to.send(uid.to_owned()).await.is_err()
            {
                continue;
            }
        }
    });
    Ok((artifacts, [vms, images, kernels]))
}

/// Runs the agent until `shutdown`.
#[allow(
    clippy::too_many_arguments,
    reason = "the parts of a node, which its two callers put together differently"
)]
pub async fn run_agent(
    client: Client,
    args: &NodeArgs,
    admin: Admin,
    namespace: &str,
    artifacts: Artifacts,
    machines: Machines,
    vms: mpsc::Receiver<String>,
    machine_wakes: mpsc::Receiver<String>,
    shutdown: CancellationToken,
) -> Result<()> {
    let name = node_name(args)?;
    let config = AgentConfig {
        data_dir: args.data_dir.clone(),
        node: name.clone(),
        keep_unused: Duration::from_secs(u64::from(args.keep_unused_days) * 86400),
        facts: facts(args, &name, namespace, machines.facts()),
    };
    let agent = Agent::new(client, config, artifacts, machines, admin.metrics.clone())?;
    agent
        .run(vms, machine_wakes, shutdown, || {
            admin.done(Step::Api);
            tracing::info!(node = name, "the agent is ready");
        })
        .await?;
    Ok(())
}

/// `vmlet agent`.
pub async fn agent(args: cli::Agent, shutdown: CancellationToken) -> Result<()> {
    let admin = Admin::start(args.node.admin_listen, &shutdown).await?;
    let client = crate::setup::client(crate::setup::config(&args.api).await?)?;
    let node = open(&args.node, &admin).await?;
    run_agent(
        client,
        &args.node,
        admin,
        &args.namespace,
        node.artifacts,
        node.machines,
        node.wakes.vms,
        node.wakes.machines,
        shutdown,
    )
    .await
}

/// `vmlet controller`.
pub async fn controller(args: cli::Controller, shutdown: CancellationToken) -> Result<()> {
    let registries = crate::registries::open(&args.registries)?;
    let client = crate::setup::client(crate::setup::config(&args.api).await?)?;
    let dir = args.data_dir.join("controller");
    let _lock = lock(&dir)?;
    let (artifacts, [_, images, kernels]) = open_artifacts(&dir, None, 1, Limits::default(), registries).await?;
    let identity = format!(
        "{}_{}",
        rustix::system::uname().nodename().to_string_lossy(),
        std::process::id()
    );
    let Some(leadership) = leader::acquire(client.clone(), &args.namespace, identity, &shutdown).await else {
        return Ok(());
    };
    let work = vmlet_cluster::run(client, &args.namespace, artifacts, images, kernels, shutdown.clone());
    tokio::select! {
        held = leadership.hold(shutdown.clone()) => held?,
        done = work => done?,
    }
    Ok(())
}

fn node_name(args: &NodeArgs) -> Result<String> {
    let name = match &args.node_name {
        Some(name) => name.clone(),
        None => rustix::system::uname().nodename().to_string_lossy().to_lowercase(),
    };
    let sound = !name.is_empty()
        && name.len() <= 253
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    if !sound {
        bail!("{name:?} cannot be the name of a node: give --node-name in lower case letters, digits, '-' and '.'");
    }
    Ok(name)
}

fn facts(args: &NodeArgs, name: &str, namespace: &str, host: &HostFacts) -> NodeFacts {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory_bytes = rustix::system::sysinfo();
    let memory_bytes = (memory_bytes.totalram as u64).saturating_mul(u64::from(memory_bytes.mem_unit));
    let allocatable_bytes = args
        .vm_memory_mib
        .map_or(memory_bytes.saturating_sub(RESERVED_MEMORY), |mib| mib << 20);
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    NodeFacts {
        namespace: namespace.to_owned(),
        labels: BTreeMap::from([
            ("kubernetes.io/hostname".to_owned(), name.to_owned()),
            ("kubernetes.io/os".to_owned(), "linux".to_owned()),
            ("kubernetes.io/arch".to_owned(), arch.to_owned()),
        ]),
        cpus,
        memory_bytes,
        allocatable_bytes,
        vmms: host
            .qemu
            .iter()
            .map(|qemu| ("QEMU".to_owned(), qemu.version.clone()))
            .collect(),
        accelerator: host
            .accelerator
            .as_ref()
            .map(|a| a.as_str().to_uppercase())
            .unwrap_or_default(),
        conditions: conditions(host),
    }
}

/// Ready, and one condition for each finding.
fn conditions(host: &HostFacts) -> Vec<NodeCondition> {
    let message = |finding: &vmlet_machines::Finding| match &finding.remedy {
        Some(remedy) => format!("{}: {remedy}", finding.message),
        None => finding.message.clone(),
    };
    let failures: Vec<String> = host
        .findings
        .iter()
        .filter(|f| f.level == Level::Failure)
        .map(message)
        .collect();
    let ready = NodeCondition {
        type_: "Ready".to_owned(),
        holds: failures.is_empty(),
        reason: if failures.is_empty() {
            "AgentReady"
        } else {
            "HostNotReady"
        }
        .to_owned(),
        message: failures.join("; "),
    };
    let findings = host.findings.iter().map(|finding| NodeCondition {
        type_: format!("{}Usable", finding.name),
        holds: finding.level == Level::Ok,
        reason: if finding.level == Level::Ok {
            "Found"
        } else {
            "NotUsable"
        }
        .to_owned(),
        message: message(finding),
    });
    std::iter::once(ready).chain(findings).collect()
}
