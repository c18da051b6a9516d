//! Why a pull failed, and what that means for the next try.

use std::time::Duration;

/// The machine-readable cause of a failure. [`Reason::as_str`] is what users see in a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The reference, URL or path cannot be parsed or names something that is not allowed.
    BadReference,
    /// The registry or server refused these credentials (or their absence).
    Unauthorized,
    /// There is no such repository, tag, digest, URL or file.
    NotFound,
    /// The bytes are not those that the digest names.
    WrongDigest,
    /// The image index has no manifest for the wanted platform.
    UnsupportedPlatform,
    /// A media type, compression or file format that cannot be used here.
    UnsupportedFormat,
    /// A manifest, layer or archive breaks its own format.
    Malformed,
    /// A bound of [`Limits`](crate::types::Limits) was exceeded.
    TooLarge,
    /// The artefact lacks a file that is needed (a kernel without a kernel, for example).
    MissingFile,
    /// Path sources are switched off: no import directory was named.
    ImportDisabled,
    /// The server could not be reached, broke off, or answered 5xx.
    Unavailable,
    /// The server asked for fewer requests (429).
    RateLimited,
    /// No byte came for longer than the stall time-out.
    Stalled,
    /// The disk (or its quota) is full.
    NoSpace,
    /// The local store failed otherwise (I/O error, read-only file system).
    StoreFailed,
    /// The pull was cancelled because nobody wanted it any more.
    Cancelled,
    /// A defect in vmlet: the worker panicked or broke its contract.
    Internal,
}

impl Reason {
    /// The CamelCase word for conditions and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::BadReference => "BadReference",
            Reason::Unauthorized => "Unauthorized",
            Reason::NotFound => "NotFound",
            Reason::WrongDigest => "WrongDigest",
            Reason::UnsupportedPlatform => "UnsupportedPlatform",
            Reason::UnsupportedFormat => "UnsupportedFormat",
            Reason::Malformed => "Malformed",
            Reason::TooLarge => "TooLarge",
            Reason::MissingFile => "MissingFile",
            Reason::ImportDisabled => "ImportDisabled",
            Reason::Unavailable => "Unavailable",
            Reason::RateLimited => "RateLimited",
            Reason::Stalled => "Stalled",
            Reason::NoSpace => "NoSpace",
            Reason::StoreFailed => "StoreFailed",
            Reason::Cancelled => "Cancelled",
            Reason::Internal => "Internal",
        }
    }

    /// Whether trying again soon can help without anybody changing anything.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Reason::Unavailable
                | Reason::RateLimited
                | Reason::Stalled
                | Reason::NoSpace
                | Reason::StoreFailed
                | Reason::Cancelled
                | Reason::Internal
        )
    }

    /// Whether another asker's source or credentials might succeed where these failed.
    ///
    /// Askers that name one digest share one pull; only such a failure makes the next asker's
    /// source and credentials worth a try. What follows from the content or from this machine is not.
    pub fn depends_on_asker(self) -> bool {
        matches!(
            self,
            Reason::Unauthorized
                | Reason::NotFound
                | Reason::BadReference
                | Reason::ImportDisabled
                | Reason::WrongDigest
                | Reason::Unavailable
                | Reason::RateLimited
                | Reason::Stalled
        )
    }
}

/// What a failure means for the next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing gets better by itself; tried again only slowly, or at once when the want changes.
    Terminal,
    /// Tried again after a back-off, and not before `retry_after` if the server named one.
    Transient {
        /// The server's Retry-After, already relative to now. It holds for the whole registry.
        retry_after: Option<Duration>,
    },
}

/// A failed resolve or pull. The message names the object, the cause and what to do, and never a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PullError {
    /// The machine-readable cause.
    pub reason: Reason,
    /// One sentence for people.
    pub message: String,
    /// What it means for the next try.
    pub kind: Kind,
}

impl PullError {
    /// An error whose kind follows from its reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> PullError {
        let kind = if reason.is_transient() {
            Kind::Transient { retry_after: None }
        } else {
            Kind::Terminal
        };
        PullError {
            reason,
            message: message.into(),
            kind,
        }
    }

    /// The server said when to come back (429 or 503 with Retry-After).
    pub fn retry_after(reason: Reason, message: impl Into<String>, after: Duration) -> PullError {
        PullError {
            reason,
            message: message.into(),
            kind: Kind::Transient {
                retry_after: Some(after),
            },
        }
    }

    /// An error of the local file system; a full disk gets its own reason.
    pub fn io(what: impl std::fmt::Display, error: &std::io::Error) -> PullError {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => PullError::new(
                Reason::NoSpace,
                format!("{what}: {error}; free some space in the data directory"),
            ),
            _ => PullError::new(Reason::StoreFailed, format!("{what}: {error}")),
        }
    }

    /// The work noticed that it was cancelled and stopped.
    pub fn cancelled() -> PullError {
        PullError::new(Reason::Cancelled, "cancelled: nobody wants it any more")
    }

    /// Whether only a change of the want can help.
    pub fn is_terminal(&self) -> bool {
        self.kind == Kind::Terminal
    }
}
