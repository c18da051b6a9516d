//! The newest changes in memory, so that a watch which keeps up never touches the file.

use std::collections::VecDeque;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use tokio::sync::watch;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Created.
    Added,
    /// Changed.
    Modified,
    /// Gone.
    Deleted,
}

impl EventKind {
    pub(super) fn code(self) -> i64 {
        match self {
            EventKind::Added => 0,
            EventKind::Modified => 1,
            EventKind::Deleted => 2,
        }
    }

    pub(super) fn from_code(code: i64) -> EventKind {
        match code {
            0 => EventKind::Added,
            1 => EventKind::Modified,
            _ => EventKind::Deleted,
        }
    }
}

/// One committed change.
#[derive(Debug)]
pub struct HistoryEvent {
    /// The resourceVersion that it made.
    pub version: u64,
    /// `group/plural`.
    pub resource: Arc<str>,
    /// Namespace, empty for cluster scope.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What happened.
    pub kind: EventKind,
    /// The object after the change (before it, for a deletion, with the new resourceVersion).
    pub body: Bytes,
    /// The object before the change.
    pub previous: Option<Bytes>,
}

/// Changes in order.
#[derive(Debug)]
pub enum Batch {
    /// All changes of the asked kind up to and including `upto`.
    Changes {
        /// In order.
        events: Vec<Arc<HistoryEvent>>,
        /// Nothing of the asked kind up to here is missing.
        upto: u64,
    },
    /// The history no longer reaches back so far.
    TooOld,
}

const TAIL_EVENTS: usize = 256;
const TAIL_BYTES: usize = 512 << 10;

struct Inner {
    /// Every change after this version is in `events`.
    start: u64,
    end: u64,
    bytes: usize,
    events: VecDeque<Arc<HistoryEvent>>,
}

pub(super) struct Tail {
    inner: RwLock<Inner>,
    committed: watch::Sender<u64>,
}

impl Tail {
    pub(super) fn new(version: u64) -> Tail {
        let inner = Inner {
            start: version,
            end: version,
            bytes: 0,
            events: VecDeque::new(),
        };
        Tail {
            inner: RwLock::new(inner),
            committed: watch::Sender::new(version),
        }
    }

    pub(super) fn committed(&self) -> watch::Receiver<u64> {
        self.committed.subscribe()
    }

    /// Appends what one commit made, then wakes the watches.
    pub(super) fn push(&self, events: Vec<HistoryEvent>, version: u64) {
        {
            let mut inner = self.inner.write().unwrap_or_else(|e| e.into_inner());
            for event in events {
                inner.bytes += size(&event);
                inner.events.push_back(Arc::new(event));
            }
            inner.end = version;
            while inner.events.len() > TAIL_EVENTS || inner.bytes > TAIL_BYTES {
                let Some(old) = inner.events.pop_front() else { break };
                inner.bytes -= size(&old);
                inner.start = old.version;
            }
        }
        self.committed.send_replace(version);
    }

    /// `None` when the tail does not reach back to `after`.
    pub(super) fn changes(&self, after: u64, resource: Option<&str>, namespace: Option<&str>) -> Option<Batch> {
        let inner = self.inner.read().unwrap_or_else(|e| e.into_inner());
        if after < inner.start {
            return None;
        }
        let first = inner.events.partition_point(|e| e.version <= after);
        let events = inner
            .events
            .range(first..)
            .filter(|e| resource.is_none_or(|r| r == &*e.resource) && namespace.is_none_or(|n| n == e.namespace))
            .cloned()
            .collect();
        Some(Batch::Changes {
            events,
            upto: inner.end.max(after),
        })
    }
}

fn size(event: &HistoryEvent) -> usize {
    event.body.len() + event.previous.as_ref().map_or(0, Bytes::len) + 200
}
