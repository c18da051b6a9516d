//! What the guest init is told, and what host and guest say to each other.
//!
//! The binary of this crate, `vmlet-init`, is PID 1 of every guest's initrd. This library holds
//! the parts that the host shares with it (configuration, channel, cpio) and the pure decisions
//! that the binary takes, so that they can be tested without booting anything.

pub mod channel;
pub mod config;
pub mod cpio;
pub mod decide;
pub mod etc;
pub mod ext4;
pub mod supervise;
pub mod users;

pub use config::GuestConfig;
