//! Virtual machines of one host: VMM drivers, supervision, disks, network and guest configuration.
//!
//! Knows nothing of Kubernetes and nothing of images: it is told files and numbers, by uid. One task owns
//! each machine (see `machine`); a VM belongs to neither a request nor the agent's process, so an agent
//! may end at any moment and the next one adopts what runs.

mod cgroup;
mod channel;
mod console;
mod crash;
mod directory;
mod durable;
mod host;
mod life;
mod machine;
mod machines;
mod network;
mod observation;
mod prepare;
mod probe;
mod process;
mod qemu;
mod record;
mod spec;
mod terminal;

pub use console::ConsoleChunk;
pub use host::Config;
pub use machines::{ConsoleFiles, Hold, Machines, OpenError, console_files};
pub use observation::{
    DiskInfo, Milestone, Observation, Phase, PortStatus, Termination, TerminationReason, Timing, VmmInfo,
};
pub use probe::{AcceleratorChoice, Finding, HostFacts, Level, Qemu, probe};
pub use qemu::argv::Accelerator;
pub use spec::{Goal, MachineSpec, PortForward, Protocol};
pub use terminal::{Terminal, TerminalError};
pub use vmlet_init::channel::ChosenInit;

pub mod initrd;

#[cfg(test)]
extern crate self as vmlet_machines;
#[cfg(test)]
#[path = "../tests/kit/mod.rs"]
mod kit;

#[cfg(test)]
mod crash_tests;
