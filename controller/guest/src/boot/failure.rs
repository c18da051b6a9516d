//! A step that failed.

use std::fmt::Display;

use vmlet_init::channel::ExitReason;

/// Why the guest cannot go on.
#[derive(Debug)]
pub struct Failure {
    /// For the exit record.
    pub reason: ExitReason,
    /// 126 or 127 when a command could not be executed, -1 otherwise.
    pub exit_code: i32,
    /// For the console, and as far as it fits for the record.
    pub message: String,
}

impl Failure {
    /// A failure in which nothing ran.
    pub fn new(reason: ExitReason, message: impl Display) -> Failure {
        Failure {
            reason,
            exit_code: -1,
            message: message.to_string(),
        }
    }
}

/// Gives an error its place among the reasons.
pub trait Because<T> {
    /// The same result with a [`Failure`] of this reason.
    fn because(self, reason: ExitReason) -> Result<T, Failure>;
}

impl<T, E: Display> Because<T> for Result<T, E> {
    fn because(self, reason: ExitReason) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(reason, error))
    }
}

/// An error with the name of what it happened to.
pub fn at(what: impl Display) -> impl FnOnce(rustix::io::Errno) -> std::io::Error {
    move |errno| {
        let error = std::io::Error::from(errno);
        std::io::Error::new(error.kind(), format!("{what}: {error}"))
    }
}
