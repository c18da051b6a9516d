//! What a machine is asked to be.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use vmlet_init::GuestConfig;

/// What is wanted of one machine. Given again and again; only differences act.
#[derive(Clone, Debug, PartialEq)]
pub enum Goal {
    /// The machine runs.
    ///
    /// It is started only if `run` is greater than the last run recorded: a run that already ended is
    /// never repeated, the asker decides about the next one. While a run lives, a changed `spec` has
    /// effect on what can change live (port forwards); the rest waits for the next run.
    Run {
        /// Number of this run; the first is 1.
        run: u64,
        /// What to run.
        spec: Box<MachineSpec>,
    },
    /// The machine is stopped: the guest is asked, and its VMM is killed once, 3 s after `grace`; at once without any.
    Stop {
        /// From the moment the stop begins. A later, shorter grace shortens a stop under way; nothing lengthens it.
        grace: Duration,
    },
    /// The machine is stopped and everything of it on this host removed. Needs only the uid.
    Delete {
        /// As in [`Goal::Stop`]; a guest that was never ready is not waited for.
        grace: Duration,
    },
}

impl Goal {
    /// The word for logs.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Goal::Run { .. } => "Run",
            Goal::Stop { .. } => "Stop",
            Goal::Delete { .. } => "Delete",
        }
    }
}

/// Everything one run of a machine is made of. All files exist and stay as they are while it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineSpec {
    /// For logs only: never a path or an argument.
    pub name: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes; rounded down to KiB.
    pub memory_bytes: u64,
    /// A PVH vmlinux (ELF) or a bzImage. Must be readable for others where VMMs have a uid of their own.
    pub kernel: PathBuf,
    /// `lib/modules/<version>/**` as a plain tar, for the modules that the initrd needs.
    pub modules_tar: Option<PathBuf>,
    /// An ext4 whose root is `lib/modules/<version>`, attached read-only with the serial `modules`.
    pub modules_disk: Option<PathBuf>,
    /// An initrd of the kernel's own, unpacked before the one that is made here.
    pub kernel_initrd: Option<PathBuf>,
    /// Identity of the kernel artefact and of what is taken from it: key of the initrd cache.
    pub kernel_digest: String,
    /// Words added to the kernel command line.
    pub kernel_args: Vec<String>,
    /// The read-only raw base of the root disk.
    pub base: PathBuf,
    /// Identity of the bytes of `base`. An overlay made on another one is refused.
    pub base_id: String,
    /// Size of `base` in bytes.
    pub base_size: u64,
    /// Wanted size of the root disk in bytes; None: as it is, or that of the base. Shrinking is refused.
    pub disk_size: Option<u64>,
    /// Whether the overlay is thrown away before this run.
    pub ephemeral: bool,
    /// Port forwards from the host.
    pub ports: Vec<PortForward>,
    /// What the guest is told.
    pub guest: GuestConfig,
}

/// Transport protocol of a port forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One port of the guest reachable from the host.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortForward {
    /// Name in the asker's spec.
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address on the host that is listened on. IPv4 only: the VMM's user network knows no other.
    pub host_ip: IpAddr,
    /// Port on the host; None or 0: a free one is chosen and reported.
    pub host_port: Option<u16>,
    /// Port of the guest.
    pub guest_port: u16,
}
