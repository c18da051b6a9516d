//! The command line: what `--help` says.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vmlet_artifacts::types::Limits;

/// A kubelet for virtual machines: `kubectl apply` a VirtualMachine, and it runs.
///
/// On one machine, `vmlet standalone` is all there is to run. On a cluster, `vmlet agent` runs on each node, and
/// `vmlet controller` once, against any Kubernetes API that serves the CRDs that `vmlet crds` prints.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// Form of the log lines on standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "VMLET_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a list such as "info,vmlet_node=debug".
    #[arg(long, global = true, default_value = "info", env = "VMLET_LOG")]
    pub log: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this machine alone: a small Kubernetes-style API, the agent and the controller in one process.
    Standalone(Standalone),
    /// Run the agent of one node against a Kubernetes API.
    Agent(Agent),
    /// Run what is decided once per cluster: resolving references and binding VMs.
    Controller(Controller),
    /// Print the CRDs as YAML, for `kubectl apply -f -`.
    Crds,
    /// Say what this machine can run, and what to do about what it cannot.
    Check(Check),
    /// Work with images, without an agent.
    #[command(subcommand)]
    Image(Image),
    /// Work with kernels, without an agent.
    #[command(subcommand)]
    Kernel(Kernel),
    /// Print what a VM wrote to its console. The agent looks every quarter of a second while there is output, and less
    /// often the longer there is none: news of a guest that was silent comes up to 16 s late.
    Logs(Logs),
    /// Type at a VM's interactive console: a shell, or the login of the image's own init. Ctrl-] leaves.
    ///
    /// It is the guest's /dev/hvc0, beside the console that `vmlet logs` shows, and works without network and ssh keys,
    /// on the node of the VM, as the user of the agent. With a pipe as standard input its lines are typed, and the answers
    /// printed. The exit status is 0 after leaving, 1 when there is no such console or the machine stopped meanwhile.
    Console(Console),
    /// Open a shell in a VM, or run a command there, through its forwarded ssh port.
    Ssh(Ssh),
}

/// Settings of everything that runs VMs.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// Directory for images, kernels and the machines' disks. One agent at a time uses it.
    #[arg(long, env = "VMLET_DATA_DIR", default_value_os_t = default_data_dir())]
    pub data_dir: PathBuf,
    /// Name of this node. Defaults to the hostname.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Directory below which `path` sources are found. Without it they are refused.
    #[arg(long)]
    pub import_dir: Option<PathBuf>,
    /// Images and kernels that are pulled at once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub max_parallel_pulls: u16,
    /// Bounds of images and of what comes from outside.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Bounds of kernels.
    #[command(flatten)]
    pub kernel_limits: KernelLimitArgs,
    /// Registries.
    #[command(flatten)]
    pub registries: RegistryArgs,
    /// Days for which images and kernels are kept that nobody uses. On a disk that is nearly full, minutes.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(0..=3650))]
    pub keep_unused_days: u16,
    /// Memory that VMs may use in all, in MiB. Defaults to the machine's memory less 1 GiB.
    #[arg(long)]
    pub vm_memory_mib: Option<u64>,
    /// Address for /metrics, /livez and /readyz, for example 127.0.0.1:9464. They need no credentials.
    #[arg(long)]
    pub admin_listen: Option<SocketAddr>,
}

/// Bounds on images and kernels, which come from outside. A pull beyond one of them fails with TooLarge.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Bounds of images and kernels")]
pub struct LimitArgs {
    /// MiB of a manifest, index or image configuration.
    #[arg(long, value_name = "MIB", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub max_manifest_mib: u16,
    /// Layers of an image.
    #[arg(long, value_name = "COUNT", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_layers: u16,
    /// Files and directories of an image, all layers together, also directories that only a path implies.
    #[arg(long, value_name = "COUNT", default_value_t = 2_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_entries: u32,
    /// MiB of an image's paths, link targets and extended attributes: they are held in memory.
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_metadata_mib: u32,
    /// Bytes of one path in an image.
    #[arg(long, value_name = "BYTES", default_value_t = 4096, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub max_path_bytes: u16,
    /// GiB of an image uncompressed, and on its disk without free space, all layers together; and of a file behind a URL or a path.
    #[arg(long, value_name = "GIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub max_image_gib: u32,
    /// MiB of the window of a layer compressed with zstd; its base-2 logarithm is rounded down.
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=2048))]
    pub max_zstd_window_mib: u16,
    /// Seconds for which a transfer may stand still, or bring fewer than 256 bytes a second. It fails with Stalled then, and is tried
    /// again.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub stall_timeout: u16,
}

/// The same of kernels, which are taken from images, too.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Bounds of images and kernels")]
pub struct KernelLimitArgs {
    /// MiB of a kernel, as it comes and expanded: it is held in memory while it is unpacked.
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub max_kernel_mib: u16,
    /// MiB of a kernel's own initrd.
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub max_initrd_mib: u16,
}

impl NodeArgs {
    /// All that bounds what a node pulls.
    pub fn limits(&self) -> Limits {
        Limits {
            kernel_bytes: u64::from(self.kernel_limits.max_kernel_mib) << 20,
            initrd_bytes: u64::from(self.kernel_limits.max_initrd_mib) << 20,
            ..Limits::from(&self.limits)
        }
    }
}

impl From<&LimitArgs> for Limits {
    fn from(args: &LimitArgs) -> Limits {
        Limits {
            manifest_bytes: u64::from(args.max_manifest_mib) << 20,
            layers: args.max_layers.into(),
            entries: args.max_entries.into(),
            metadata_bytes: u64::from(args.max_metadata_mib) << 20,
            path_bytes: args.max_path_bytes.into(),
            uncompressed_bytes: u64::from(args.max_image_gib) << 30,
            zstd_window_bytes: u64::from(args.max_zstd_window_mib) << 20,
            stall_timeout: Duration::from_secs(args.stall_timeout.into()),
            ..Limits::default()
        }
    }
}

/// What is said about registries. It and what comes after it stand below no heading, also behind those that do.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = None::<&'static str>)]
pub struct RegistryArgs {
    /// Registry configuration: mirrors, plain HTTP, own authorities, proxies. Defaults to /etc/vmlet/registries.conf, if it
    /// exists.
    #[arg(long, value_name = "FILE", env = "VMLET_REGISTRY_CONFIG")]
    pub registry_config: Option<PathBuf>,
    /// Docker configuration file with registry logins of this machine, beside the pull secrets. What they open is open to
    /// all VMs here. Its credential helpers are run.
    #[arg(long, value_name = "FILE", env = "VMLET_AUTHFILE")]
    pub authfile: Option<PathBuf>,
}

/// Settings of `vmlet standalone`.
#[derive(Clone, Debug, Args)]
pub struct Standalone {
    /// Settings of the node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Address and port on which the API is served with TLS. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:6440")]
    pub listen: SocketAddr,
    /// Writes a kubeconfig for the API to this file. It holds the token that may do everything: keep it to yourself.
    #[arg(long)]
    pub write_kubeconfig: Option<PathBuf>,
}

/// Settings of `vmlet agent`.
#[derive(Clone, Debug, Args)]
pub struct Agent {
    /// Settings of the node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Which API.
    #[command(flatten)]
    pub api: ApiArgs,
    /// Namespace of the node's Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "kube-system")]
    pub namespace: String,
}

/// Settings of `vmlet controller`.
#[derive(Clone, Debug, Args)]
pub struct Controller {
    /// Namespace of the controller's Lease, and of the nodes' Leases. Of several controllers one works, and the others wait.
    #[arg(long, env = "POD_NAMESPACE", default_value = "kube-system")]
    pub namespace: String,
    /// Directory for what is needed while references are resolved.
    #[arg(long, env = "VMLET_DATA_DIR", default_value_os_t = default_data_dir())]
    pub data_dir: PathBuf,
    /// Registries.
    #[command(flatten)]
    pub registries: RegistryArgs,
    /// Which API.
    #[command(flatten)]
    pub api: ApiArgs,
}

/// Which Kubernetes API to use.
#[derive(Clone, Debug, Args)]
pub struct ApiArgs {
    /// kubeconfig file. Defaults to $KUBECONFIG, ~/.kube/config, or the pod's service account.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
}

/// Settings of `vmlet check`.
#[derive(Clone, Debug, Args)]
pub struct Check {
    /// The data directory to look at.
    #[arg(long, env = "VMLET_DATA_DIR", default_value_os_t = default_data_dir())]
    pub data_dir: PathBuf,
}

/// `vmlet image ...`
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Build an ext4 disk image from a container image, once, into a file.
    ///
    /// The exit status is 0 only for a complete file that is safe on disk; otherwise there is no file.
    Build(ImageBuild),
}

/// Settings of `vmlet image build`.
#[derive(Clone, Debug, Args)]
pub struct ImageBuild {
    /// Reference of the image, for example docker.io/library/debian:bookworm.
    pub reference: String,
    /// File to write. It must not exist.
    #[arg(long, short)]
    pub output: PathBuf,
    /// Replace the file if it exists.
    #[arg(long)]
    pub force: bool,
    /// Size of the disk, for example 2Gi. Defaults to what the contents need, with some space to spare.
    #[arg(long)]
    pub size: Option<String>,
    /// Platform to take from an index, for example linux/arm64. Defaults to this machine's.
    #[arg(long)]
    pub platform: Option<String>,
    /// Registry configuration: mirrors, plain HTTP, own authorities, proxies. Defaults to /etc/vmlet/registries.conf, if it
    /// exists.
    #[arg(long, value_name = "FILE", env = "VMLET_REGISTRY_CONFIG")]
    pub registry_config: Option<PathBuf>,
    /// Docker configuration file with registry logins, whose credential helpers are run. Defaults to
    /// ~/.docker/config.json, if it exists.
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Bounds of the image.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// `vmlet kernel ...`
#[derive(Debug, Subcommand)]
pub enum Kernel {
    /// Make an OCI artifact (an image layout) from a Debian kernel package or a directory.
    Package(KernelPackage),
}

/// Settings of `vmlet kernel package`.
#[derive(Clone, Debug, Args)]
#[command(group(clap::ArgGroup::new("kernel source").required(true).args(["from_deb", "from_dir"])))]
pub struct KernelPackage {
    /// A Debian package such as linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb.
    #[arg(long)]
    pub from_deb: Option<PathBuf>,
    /// A directory that holds boot/vmlinuz-* (or vmlinux) and lib/modules/*.
    #[arg(long)]
    pub from_dir: Option<PathBuf>,
    /// Directory to write the OCI image layout to. It must not exist.
    #[arg(long, short)]
    pub output: PathBuf,
}

/// Which VM.
#[derive(Clone, Debug, Args)]
pub struct VmArgs {
    /// Name of the VirtualMachine; `vm/NAME`, as kubectl prints it, will do.
    pub vm: String,
    /// Its namespace. Defaults to that of the kubeconfig's context.
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Which API.
    #[command(flatten)]
    pub api: ApiArgs,
}

/// Settings of `vmlet logs`.
#[derive(Clone, Debug, Args)]
pub struct Logs {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArgs,
    /// Go on as the guest writes, across restarts, until the VM is deleted.
    #[arg(long, short)]
    pub follow: bool,
    /// Print the log of the run before the latest one.
    #[arg(long, short, conflicts_with = "follow")]
    pub previous: bool,
    /// Print the last lines only, this many.
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// The data directory of the agent on this machine.
    #[arg(long, env = "VMLET_DATA_DIR", default_value_os_t = default_data_dir())]
    pub data_dir: PathBuf,
}

/// Settings of `vmlet console`.
#[derive(Clone, Debug, Args)]
pub struct Console {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArgs,
    /// When the input is a pipe and has ended: leave once the guest has been silent for so many seconds.
    #[arg(long, default_value_t = 2, value_name = "SECONDS")]
    pub linger: u64,
    /// The data directory of the agent on this machine.
    #[arg(long, env = "VMLET_DATA_DIR", default_value_os_t = default_data_dir())]
    pub data_dir: PathBuf,
}

/// Settings of `vmlet ssh`.
#[derive(Clone, Debug, Args)]
pub struct Ssh {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArgs,
    /// User to log in as.
    #[arg(long, short, default_value = "root")]
    pub login: String,
    /// File with the private key.
    #[arg(long, short)]
    pub identity: Option<PathBuf>,
    /// Command to run, after `--`. Without one, a shell.
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// /var/lib/vmlet for root, the state directory of the user (XDG base directories) otherwise.
fn default_data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/vmlet");
    }
    std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("."))
        .join("vmlet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn only_bounds_stand_below_their_heading() {
        let mut all = <Cli as clap::CommandFactory>::command();
        all.build();
        for name in ["standalone", "agent"] {
            let command = all.find_subcommand(name).expect("there is one");
            let below = command.get_arguments().filter(|arg| arg.get_help_heading().is_some());
            let below: Vec<_> = below.filter_map(clap::Arg::get_long).collect();
            assert_eq!(
                (below.first(), below.last()),
                (Some(&"max-manifest-mib"), Some(&"max-initrd-mib"))
            );
            assert_eq!(below.len(), 10, "{below:?}");
        }
    }

    #[test]
    fn bounds_that_nobody_sets_are_the_ones_of_the_library() {
        let parsed = |more: &[&str]| {
            let build = ["vmlet", "image", "build", "--output", "o", "image"];
            let Command::Image(Image::Build(build)) =
                Cli::try_parse_from(build.iter().chain(more)).expect("parses").command
            else {
                panic!("another command");
            };
            Limits::from(&build.limits)
        };
        assert_eq!(parsed(&[]), Limits::default());
        let set = parsed(&["--max-image-gib", "1", "--max-entries=10", "--max-zstd-window-mib=8"]);
        let bytes = (set.uncompressed_bytes, set.entries, set.zstd_window_bytes);
        assert_eq!(bytes, (1 << 30, 10, 8 << 20));
        assert_eq!(parsed(&["--stall-timeout=5"]).stall_timeout, Duration::from_secs(5));
        // Those of kernels are a node's.
        let node = |more: &[&str]| {
            let Command::Standalone(standalone) = Cli::try_parse_from(["vmlet", "standalone"].iter().chain(more))
                .expect("parses")
                .command
            else {
                panic!("another command");
            };
            standalone.node.limits()
        };
        assert_eq!(node(&[]), Limits::default());
        let set = node(&[
            "--max-kernel-mib=3",
            "--max-initrd-mib=4",
            "--stall-timeout=6",
            "--max-layers=7",
        ]);
        assert_eq!((set.kernel_bytes, set.initrd_bytes), (3 << 20, 4 << 20));
        assert_eq!((set.stall_timeout, set.layers), (Duration::from_secs(6), 7));
        let refused = |flag: &str| Cli::try_parse_from(["vmlet", "standalone", flag]).is_err();
        assert!(refused("--stall-timeout=0") && refused("--max-kernel-mib=0") && refused("--max-initrd-mib=4097"));
    }

    #[test]
    fn a_kernel_is_packaged_from_exactly_one_source() {
        let parse = |args: &[&str]| Cli::try_parse_from(["vmlet", "kernel", "package"].iter().chain(args)).is_ok();
        assert!(parse(&["--from-deb", "a.deb", "--output", "o"]));
        assert!(parse(&["--from-dir", "d", "--output", "o"]));
        assert!(!parse(&["--output", "o"]));
        assert!(!parse(&["--from-deb", "a.deb", "--from-dir", "d", "--output", "o"]));
    }
}
