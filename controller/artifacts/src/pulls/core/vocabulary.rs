//! What is said to the core, and what it answers.

use std::time::Duration;

use crate::error::PullError;
use crate::types::Interest;

/// What there is at most one run for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A source, the wanted digest if any, and the asker's proof of access.
    Resolve(String),
    /// A disk identity.
    Image(String),
    /// A kernel identity.
    Kernel(String),
}

/// Which slots a key competes for. Resolving is short and must not wait behind long pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Resolves.
    Resolve,
    /// Images and kernels.
    Pull,
}

impl Key {
    /// The key's lane.
    pub fn lane(&self) -> Lane {
        match self {
            Key::Resolve(_) => Lane::Resolve,
            Key::Image(_) | Key::Kernel(_) => Lane::Pull,
        }
    }

    /// Whether a result stays in memory while somebody wants it. Pulls leave theirs on disk.
    pub fn keeps_result(&self) -> bool {
        self.lane() == Lane::Resolve
    }
}

/// An interest may want several things at a time: one per slot. A new want in a slot replaces the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// The answer to a caller's own resolve.
    Resolve,
    /// The resolve on the way to an image.
    ImageSource,
    /// An image.
    Image,
    /// The resolve on the way to a kernel.
    KernelSource,
    /// A kernel.
    Kernel,
}

/// One want of one interest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asker {
    /// Who.
    pub interest: Interest,
    /// For what.
    pub slot: Slot,
}

/// What an asker brings to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer<J> {
    /// Identity of source and credentials. Equal ids would do the same work; a changed one is a changed want.
    pub id: String,
    /// The registry that the work would talk to; a Retry-After holds for all keys of a registry.
    pub registry: Option<String>,
    /// The work.
    pub job: J,
}

/// Identity of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// What happens to the core. Times are since an arbitrary, fixed, monotonic start.
#[derive(Clone, Debug)]
pub enum Input<J, V> {
    /// An asker wants a key. Replaces what it wanted before.
    Ensure {
        /// Who, for what.
        asker: Asker,
        /// The key.
        key: Key,
        /// What it brings.
        offer: Offer<J>,
    },
    /// An interest wants nothing any more, or nothing in one slot.
    Release {
        /// Who.
        interest: Interest,
        /// Which slot; all when `None`.
        slot: Option<Slot>,
    },
    /// A run has ended, with everything that belonged to it. A panic is an `Err` too.
    Done {
        /// Which.
        run: RunId,
        /// How.
        result: Result<V, PullError>,
    },
    /// The armed time has come.
    Timer,
    /// Cancel everything and start nothing any more.
    Shutdown,
}

/// What the owner of the core has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<J> {
    /// Start a run; answer with `Done`.
    Start {
        /// Its identity.
        run: RunId,
        /// Its key.
        key: Key,
        /// The work.
        job: J,
    },
    /// Ask a run to stop; its `Done` is still awaited.
    Cancel {
        /// Which.
        run: RunId,
    },
    /// Send `Timer` at this time, and forget any earlier `Arm`; `None` disarms.
    Arm {
        /// When.
        at: Option<Duration>,
    },
    /// Tell an interest that something it asked for is ready or failed.
    Wake {
        /// Whom.
        interest: Interest,
    },
}

/// How far a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View<V> {
    /// Waits for a slot (or for a cancelled run to end).
    Queued {
        /// How many are before it.
        position: usize,
        /// The failure of the try before, if any.
        before: Option<PullError>,
    },
    /// Being done.
    Running {
        /// The run, to look up its progress.
        run: RunId,
        /// The failure of the try before, if any.
        before: Option<PullError>,
    },
    /// Waits for a time: after a failure, or (without one) because the registry asked for a pause.
    Paused {
        /// Until when.
        until: Duration,
        /// The failure.
        error: Option<PullError>,
    },
    /// Here.
    Ready(V),
}

/// How many runs there may be at a time.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    /// Of resolves.
    pub resolves: usize,
    /// Of images and kernels together.
    pub pulls: usize,
}
