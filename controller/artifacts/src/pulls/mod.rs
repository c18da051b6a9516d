//! Keyed pulls: at most one worker per key, whoever asks and however often.
//!
//! [`core`] decides (no clock, no I/O), [`manager`] is the one task that owns it and runs the
//! bodies, [`work`] is the seam to the pipeline that does the work.

pub mod body;
pub mod core;
pub mod identity;
pub mod manager;
pub mod work;
