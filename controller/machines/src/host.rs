//! What all machines of one agent share.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use crate::cgroup::Cgroups;
use crate::probe::{AcceleratorChoice, HostFacts};
use crate::process::{Identity, host_boot_id};
use crate::spec::MachineSpec;

/// How machines are run on this host.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of all machines: one directory per uid, and `initrds`.
    pub dir: PathBuf,
    /// The QEMU to use; None: `qemu-system-x86_64` from PATH.
    pub qemu: Option<PathBuf>,
    /// KVM or TCG.
    pub accelerator: AcceleratorChoice,
    /// Whether VMMs get a cgroup and a user of their own where that can be had (it takes root).
    pub isolate: bool,
    /// How long a VMM may take until it answers on its monitor; what is asked within that time has until then.
    pub vmm_deadline: Duration,
    /// How long a guest may take until it is ready.
    pub guest_deadline: Duration,
    /// How long a VMM that was started before may take for one answer.
    pub call_timeout: Duration,
    /// How long [`crate::Machines::hold`] keeps a VMM at most.
    pub longest_hold: Duration,
    /// Bytes per console log file; two are kept of each of the last two runs.
    pub console_limit: u64,
    /// Use this initrd for every machine rather than one built for its kernel. It must hold vmlet-init.
    pub initrd: Option<PathBuf>,
}

impl Config {
    /// The defaults, for machines below `dir`.
    pub fn new(dir: PathBuf) -> Config {
        Config {
            dir,
            qemu: None,
            accelerator: AcceleratorChoice::Auto,
            isolate: true,
            vmm_deadline: Duration::from_secs(30),
            guest_deadline: Duration::from_secs(300),
            call_timeout: Duration::from_secs(5),
            longest_hold: Duration::from_millis(200),
            console_limit: 1 << 20,
            initrd: None,
        }
    }
}

/// What every machine of this agent needs to know.
#[derive(Debug)]
pub struct Host {
    /// As configured.
    pub config: Config,
    /// As found.
    pub facts: HostFacts,
    /// This boot of the host.
    pub boot_id: String,
    /// The first port that needs no privilege to listen on.
    pub first_free_port: u16,
    /// Where VMMs are accounted.
    pub cgroups: Cgroups,
    /// Tells the agent which machine changed.
    pub notifier: Notifier,
}

/// The cache of initrds, in the directory of all machines.
pub const INITRDS: &str = "initrds";

/// First of 2^20 user ids for VMMs: above what distributions and user namespaces hand out.
const FIRST_USER: u32 = 0x7000_0000;
const USERS: u32 = 1 << 20;

impl Host {
    /// Looks at this host.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn probe(config: Config, wake: mpsc::Sender<String>) -> io::Result<Host> {
        Ok(Host {
            facts: crate::probe::probe(&config),
            boot_id: host_boot_id()?,
            first_free_port: first_free_port(),
            cgroups: if config.isolate {
                Cgroups::find()
            } else {
                Cgroups::none()
            },
            notifier: Notifier::start(wake),
            config,
        })
    }

    /// The identity of a machine's VMM: derived from the uid, so that nothing has to be remembered.
    pub fn identity(&self, uid: &str) -> Option<Identity> {
        if !self.config.isolate || !rustix::process::geteuid().is_root() {
            return None;
        }
        let hash = uid
            .bytes()
            .fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Some(Identity {
            id: FIRST_USER + hash % USERS,
            extra_group: self.facts.kvm_group(),
        })
    }

    /// Whether a VMM of ours may run as this user.
    pub fn is_ours(&self, user: u32) -> bool {
        user == rustix::process::geteuid().as_raw() || (FIRST_USER..FIRST_USER + USERS).contains(&user)
    }

    /// The shared initrd for a spec's kernel, built if it is not there yet.
    ///
    /// # Errors
    /// Why it cannot be built, for people.
    pub fn initrd(&self, spec: &MachineSpec) -> Result<PathBuf, String> {
        match &self.config.initrd {
            Some(path) => Ok(path.clone()),
            None => crate::initrd::ensure(
                &self.config.dir.join(INITRDS),
                &spec.kernel_digest,
                spec.modules_tar.as_deref(),
                spec.kernel_initrd.as_deref(),
            )
            .map_err(|error| error.to_string()),
        }
    }
}

fn first_free_port() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    text.trim().parse().unwrap_or(1024)
}

/// Tells which machines changed, each once however often it changed, without ever holding up a machine.
#[derive(Clone, Debug)]
pub struct Notifier {
    changed: Arc<(Mutex<BTreeSet<String>>, Notify)>,
}

impl Notifier {
    fn start(wake: mpsc::Sender<String>) -> Notifier {
        let changed = Arc::new((Mutex::new(BTreeSet::new()), Notify::new()));
        let mine = Arc::clone(&changed);
        tokio::spawn(async move {
            loop {
                let next = mine.0.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
                match next {
                    Some(uid) => {
                        if wake.send(uid).await.is_err() {
                            return;
                        }
                    }
                    None => tokio::select! {
                        () = mine.1.notified() => {}
                        () = wake.closed() => return,
                    },
                }
            }
        });
        Notifier { changed }
    }

    /// This machine changed.
    pub fn changed(&self, uid: &str) {
        let mut set = self.changed.0.lock().unwrap_or_else(PoisonError::into_inner);
        set.insert(uid.to_owned());
        self.changed.1.notify_one();
    }
}
