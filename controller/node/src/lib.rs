//! The node agent: it watches the virtual machines bound to its node, makes what they need exist
//! there, boots them, and writes what it saw back to their status.
//!
//! ```text
//!  API watch ──┐                 ┌─> artifacts (asks; never waits for a pull)
//!  artifacts ──┼─> reconcile ────┼─> machines  (says the goal; never waits for a boot)
//!  machines  ──┘    one per VM   └─> API: finalizer, status, events
//! ```
//!
//! A reconcile has named stages: [`dereference`] reads what the VM refers to, [`life`] decides
//! (pure), [`guest`] builds what to boot (pure), [`status`] describes what was seen (pure), and
//! `reconcile` does the I/O between them. Wake-ups come from the watch, from a pull that ended and
//! from a machine that changed; a long safety requeue stands behind them.

pub mod agent;
mod dereference;
mod events;
#[cfg(test)]
#[allow(
    dead_code,
    reason = "shared with the tests of vmlet-cluster, which wait for changes too"
)]
mod fake_api;
mod guest;
mod hostkey;
pub mod housekeeping;
mod identity;
pub mod life;
mod memory;
pub mod metrics;
mod orphans;
mod own_writes;
mod reconcile;
mod ssh_keys;
mod status;
#[cfg(test)]
mod visits;
mod vmnode;

pub use agent::{Agent, AgentConfig, AgentError};
pub use identity::{lock_data_dir, lock_holder};
