//! Places at which a test ends its own process as `kill -9` would. Compiled to nothing otherwise.

/// The process of a test ends here if it was asked to.
#[cfg(not(test))]
#[inline]
pub fn crash_point(_name: &'static str) {}

#[cfg(test)]
pub use armed::{AT, crash_point};

#[cfg(test)]
mod armed {
    use std::sync::LazyLock;

    /// The variable that names the place.
    pub const AT: &str = "VMLET_TEST_CRASH_AT";

    static CHOSEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(AT).ok());

    pub fn crash_point(name: &'static str) {
        if CHOSEN.as_deref() == Some(name) {
            let own = rustix::process::getpid();
            let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        }
    }
}
