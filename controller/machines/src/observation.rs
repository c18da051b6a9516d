//! What is known about a machine.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use vmlet_init::channel::ChosenInit;

use crate::spec::Protocol;

/// The latest known state of one machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// The last run that was begun; 0: none yet.
    pub run: u64,
    /// Where in its life the machine is.
    pub phase: Phase,
    /// The guest kernel's boot id of the latest boot that was ready.
    pub boot_id: Option<String>,
    /// How often the guest rebooted inside this run (seen as new boot ids).
    pub reboots: u64,
    /// When this run's VMM was executed.
    pub started_at: Option<SystemTime>,
    /// When the guest was first ready in this run.
    pub ready_at: Option<SystemTime>,
    /// How the last run that ended, ended.
    pub termination: Option<Termination>,
    /// The VMM of this run.
    pub vmm: Option<VmmInfo>,
    /// The port forwards as they are.
    pub ports: Vec<PortStatus>,
    /// Addresses of the guest on its own network.
    pub addresses: Vec<String>,
    /// The root disk and what it depends on.
    pub disk: Option<DiskInfo>,
    /// Which init the guest runs, by its own word.
    pub init: Option<ChosenInit>,
    /// What the guest says went wrong without being fatal.
    pub guest_warnings: Vec<String>,
    /// Why the running guest could not take changed ssh keys: they wait for the next start.
    pub keys_refused: Option<String>,
    /// When the steps of the latest start were done, in order.
    pub timings: Vec<Timing>,
    /// What stands in the way of the goal right now and is being retried (a deletion that fails), for people.
    pub problem: Option<String>,
}

/// A step of a start that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// The machine has its root disk.
    Disk,
    /// Its VMM was executed.
    Vmm,
}

impl Observation {
    /// Whether run `run` has come to `milestone`, or has ended.
    pub(crate) fn has_come_to(&self, milestone: Milestone, run: u64) -> bool {
        let ended = self.termination.as_ref().is_some_and(|end| end.run >= run);
        let made = milestone == Milestone::Disk && self.disk.is_some();
        self.run >= run && (ended || made || self.phase != Phase::Preparing)
    }
}

/// Where in its life a machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing of it is on this host.
    #[default]
    Absent,
    /// It has a directory here and does not run.
    Stopped,
    /// It is to run, and what its VMM needs is being made: there is no VMM yet.
    Preparing,
    /// Its VMM runs, and its guest has not been ready in this run yet.
    Starting,
    /// Its guest has been ready in this run.
    Running {
        /// Whether it is ready right now (false while it reboots).
        guest_ready: bool,
    },
    /// The VMM stopped the guest for a while; it goes on by itself when it can.
    Paused {
        /// Why, for people.
        reason: String,
    },
    /// It was asked to stop.
    Stopping,
    /// It is being removed.
    Deleting,
    /// Nothing of it is on this host any more.
    Deleted,
    /// Its VMM lives and cannot be talked to. It is neither started again nor thought dead.
    Unmanageable {
        /// Why, for people.
        message: String,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Termination {
    /// Which run.
    pub run: u64,
    /// Why, in a word.
    pub reason: TerminationReason,
    /// Exit status of the workload where there was one (128 + signal when a signal ended it).
    pub exit_code: Option<i32>,
    /// Why, for people.
    pub message: String,
    /// When it was seen to have ended.
    pub finished_at: SystemTime,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TerminationReason {
    /// The workload ended with 0, or the guest powered itself off.
    Completed,
    /// The workload ended with another status.
    Error,
    /// It was asked to stop, and did.
    Stopped,
    /// It was asked to stop, did not in time, and was killed. Unsynced data may be lost.
    ForcedKill,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest gave up, reset or never got ready before it ran anything.
    BootFailed,
    /// The VMM could not be started.
    StartFailed,
    /// The VMM ended without the guest having ended.
    VmmDied,
    /// The VMM was killed for want of memory.
    OOMKilled,
    /// The host was restarted under it.
    HostReboot,
}

impl TerminationReason {
    /// Whether a strategy that restarts failures only lets this one rest.
    pub fn is_success(self) -> bool {
        matches!(self, TerminationReason::Completed | TerminationReason::Stopped)
    }
}

impl std::fmt::Display for TerminationReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// Which program runs a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmmInfo {
    /// `QEMU`.
    pub kind: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// As the program prints it: `7.2.22`.
    pub version: String,
    /// Process id while it lives.
    pub pid: Option<i32>,
}

/// One port forward as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStatus {
    /// Name in the asker's spec.
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address on the host.
    pub host_ip: IpAddr,
    /// Port on the host; None while it is not forwarded.
    pub host_port: Option<u16>,
    /// Port of the guest.
    pub guest_port: u16,
    /// Why it is not forwarded, for people. The machine runs all the same.
    pub error: Option<String>,
}

/// A root disk and what it depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskInfo {
    /// Identity of the base under the overlay.
    pub base_id: String,
    /// Virtual size in bytes.
    pub size_bytes: u64,
    /// Files that must stay as they are: the base for the life of the disk, kernel and modules for this run.
    pub pinned: Vec<PathBuf>,
}

/// A step of a start, and when it was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timing {
    /// `asked`, `prepared`, `executed`, `vmmAnswered`, `guestReady`.
    pub step: String,
    /// When.
    pub at: SystemTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_prepared_has_come_to_its_disk_once_it_is_made_and_not_to_its_vmm() {
        let mut seen = Observation {
            run: 1,
            phase: Phase::Preparing,
            ..Observation::default()
        };
        let come_to = |seen: &Observation, run| [Milestone::Disk, Milestone::Vmm].map(|m| seen.has_come_to(m, run));
        assert_eq!(come_to(&seen, 1), [false, false]);
        seen.disk = Some(DiskInfo {
            base_id: "sha256:0".to_owned(),
            size_bytes: 1,
            pinned: Vec::new(),
        });
        assert_eq!(come_to(&seen, 1), [true, false]);
        seen.phase = Phase::Starting;
        assert_eq!(come_to(&seen, 1), [true, true]);
        assert_eq!(
            come_to(&seen, 2),
            [false, false],
            "the run before tells nothing of the next"
        );
    }
}
