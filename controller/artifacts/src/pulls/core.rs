//! The pure core of keyed pulls: inputs in, effects out. It reads no clock and does no I/O.
//!
//! ```text
//!                 first Ensure                slot free
//!      (absent) ───────────────▶ Queued ─────────────────▶ Running ──success──▶ Ready (kept keys)
//!         ▲                       ▲  ▲ ▲                    │ │ │                or absent
//!         │ last asker gone       │  │ └─next asker's offer─┘ │ │
//!         ├───────────────────────┘  │                        │ └─failure──▶ Paused ──Timer──▶ Queued
//!         │                          │ newcomer meanwhile     │ last asker gone
//!         └────────Done──────── Cancelling ◀──────────────────┘
//! ```
//!
//! Invariants (tested in `tests/pulls_core.rs` under these names):
//! S1 at most one run per key. S4 runs never exceed the lane's slots; a waiter holds none.
//! S6 a result goes only to those who asked before the run was cancelled. S7 no entry without an asker or a run.
//! L1 every asker is woken with a result or an error. L3 slots are first come, first served.
//! L4 the last asker's leaving cancels; a newcomer gets a fresh run after the old one's `Done`.
//! L5 one asker's leaving disturbs no other. L6 a failure wakes each asker once, keys back off alone.
//! L7 a failed or panicked key can be used again. L8 shutdown cancels all and starts nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::error::{Kind, PullError};
use crate::types::Interest;

/// The first pause after a transient failure; doubles with each further one.
pub const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause, and the pause after a terminal failure.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The longest Retry-After that is believed.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

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

#[derive(Debug)]
enum Phase<V> {
    Queued,
    Running {
        run: RunId,
        offer: String,
        registry: Option<String>,
    },
    Cancelling,
    /// `failed`: after a failure; otherwise only the registry's wish keeps it back.
    Paused {
        until: Duration,
        failed: bool,
    },
    Ready(V),
}

#[derive(Debug)]
struct Party<J> {
    offer: Offer<J>,
    /// The lowest turn is tried next.
    turn: u64,
}

#[derive(Debug)]
struct Entry<J, V> {
    phase: Phase<V>,
    parties: BTreeMap<Asker, Party<J>>,
    /// Offers that failed in this round for a reason of their own.
    refused: BTreeSet<String>,
    failures: u32,
    error: Option<PullError>,
    /// When the last failure's pause ends.
    due: Duration,
}

#[derive(Debug, Default)]
struct LaneState {
    queue: VecDeque<Key>,
    running: usize,
    slots: usize,
}

/// The state of all keys. See the module's head for the state machine.
#[derive(Debug)]
pub struct Core<J, V> {
    entries: BTreeMap<Key, Entry<J, V>>,
    askers: BTreeMap<Asker, Key>,
    runs: BTreeMap<RunId, Key>,
    resolves: LaneState,
    pulls: LaneState,
    /// Registries that asked for a pause, and until when.
    registries: BTreeMap<String, Duration>,
    next_run: u64,
    next_turn: u64,
    random: u64,
    armed: Option<Duration>,
    closed: bool,
}

impl<J: Clone, V: Clone> Core<J, V> {
    /// An empty core. `seed` feeds the jitter, and nothing else is random.
    pub fn new(slots: Slots, seed: u64) -> Core<J, V> {
        Core {
            entries: BTreeMap::new(),
            askers: BTreeMap::new(),
            runs: BTreeMap::new(),
            resolves: LaneState {
                slots: slots.resolves.max(1),
                ..LaneState::default()
            },
            pulls: LaneState {
                slots: slots.pulls.max(1),
                ..LaneState::default()
            },
            registries: BTreeMap::new(),
            next_run: 1,
            next_turn: 0,
            random: seed,
            armed: None,
            closed: false,
        }
    }

    /// Takes one input at time `now` and says what has to be done, in this order.
    pub fn handle(&mut self, now: Duration, input: Input<J, V>) -> Vec<Effect<J>> {
        let mut effects = Vec::new();
        match input {
            Input::Ensure { asker, key, offer } if !self.closed => self.ensure(asker, key, offer, &mut effects),
            Input::Ensure { .. } => {}
            Input::Release { interest, slot } => {
                let gone: Vec<Asker> = self
                    .askers
                    .keys()
                    .filter(|a| a.interest == interest && slot.is_none_or(|s| s == a.slot))
                    .cloned()
                    .collect();
                for asker in &gone {
                    self.leave(asker, &mut effects);
                }
            }
            Input::Done { run, result } => self.done(now, run, result, &mut effects),
            Input::Timer => self.timer(now),
            Input::Shutdown => self.shutdown(&mut effects),
        }
        self.registries.retain(|_, until| *until > now);
        self.pump(now, &mut effects);
        self.arm(&mut effects);
        effects
    }

    /// How far a key is; `None` when nobody wants it.
    pub fn view(&self, key: &Key) -> Option<View<V>> {
        let entry = self.entries.get(key)?;
        let before = entry.error.clone();
        Some(match &entry.phase {
            Phase::Queued => {
                let queue = &self.lane_ref(key.lane()).queue;
                View::Queued {
                    position: queue.iter().position(|k| k == key).unwrap_or_default(),
                    before,
                }
            }
            Phase::Cancelling => View::Queued { position: 0, before },
            Phase::Running { run, .. } => View::Running { run: *run, before },
            Phase::Paused { until, .. } => View::Paused {
                until: *until,
                error: before,
            },
            Phase::Ready(value) => View::Ready(value.clone()),
        })
    }

    /// Whether no run is alive.
    pub fn is_idle(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many keys are known, for metrics and tests.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn ensure(&mut self, asker: Asker, key: Key, offer: Offer<J>, effects: &mut Vec<Effect<J>>) {
        if self.askers.get(&asker).is_some_and(|held| *held != key) {
            self.leave(&asker, effects);
        }
        self.askers.insert(asker.clone(), key.clone());
        let turn = self.turn();
        let Some(entry) = self.entries.get_mut(&key) else {
            let entry = Entry {
                phase: Phase::Queued,
                parties: BTreeMap::from([(asker, Party { offer, turn })]),
                refused: BTreeSet::new(),
                failures: 0,
                error: None,
                due: Duration::ZERO,
            };
            self.entries.insert(key.clone(), entry);
            self.lane(key.lane()).queue.push_back(key);
            return;
        };
        let known = entry.parties.get_mut(&asker);
        if let Some(party) = known.filter(|p| p.offer.id == offer.id) {
            party.offer = offer;
            return;
        }
        let id = offer.id.clone();
        let changed = entry.parties.insert(asker, Party { offer, turn }).is_some();
        let Phase::Paused { failed, .. } = entry.phase else {
            return;
        };
        // A changed want starts afresh; so does a newcomer whose own source or credentials may do better.
        let may_do_better =
            !entry.refused.contains(&id) && entry.error.as_ref().is_some_and(|e| e.reason.depends_on_asker());
        if changed || may_do_better || !failed {
            if changed {
                entry.failures = 0;
                entry.error = None;
                entry.refused.clear();
            }
            entry.phase = Phase::Queued;
            self.lane(key.lane()).queue.push_back(key);
        }
    }

    fn leave(&mut self, asker: &Asker, effects: &mut Vec<Effect<J>>) {
        let Some(key) = self.askers.remove(asker) else { return };
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        entry.parties.remove(asker);
        if !entry.parties.is_empty() {
            return;
        }
        match entry.phase {
            Phase::Running { run, .. } => {
                entry.phase = Phase::Cancelling;
                effects.push(Effect::Cancel { run });
            }
            // Its run is still alive: the entry stays until `Done`.
            Phase::Cancelling => {}
            Phase::Queued | Phase::Paused { .. } | Phase::Ready(_) => self.forget(&key),
        }
    }

    fn done(&mut self, now: Duration, run: RunId, result: Result<V, PullError>, effects: &mut Vec<Effect<J>>) {
        // By the run's identity, not by its key: a late `Done` must not end another run.
        let Some(key) = self.runs.remove(&run) else { return };
        self.lane(key.lane()).running -= 1;
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let (offer, registry) = match &entry.phase {
            Phase::Running { offer, registry, .. } => (offer.clone(), registry.clone()),
            _ if entry.parties.is_empty() => return self.forget(&key),
            _ => {
                // Somebody came while it was being cancelled: afresh, whatever the old run brought.
                entry.phase = Phase::Queued;
                entry.refused.clear();
                entry.failures = 0;
                entry.error = None;
                self.lane(key.lane()).queue.push_back(key);
                return;
            }
        };
        match result {
            Ok(value) => {
                effects.extend(wakes(entry));
                if key.keeps_result() {
                    entry.phase = Phase::Ready(value);
                    entry.error = None;
                    entry.failures = 0;
                    entry.refused.clear();
                } else {
                    self.forget(&key);
                }
            }
            Err(error) => self.failed(now, &key, (offer, registry), error, effects),
        }
    }

    fn failed(
        &mut self,
        now: Duration,
        key: &Key,
        (offer, registry): (String, Option<String>),
        error: PullError,
        effects: &mut Vec<Effect<J>>,
    ) {
        let wished = match error.kind {
            Kind::Transient {
                retry_after: Some(after),
            } => after.min(LONGEST_RETRY_AFTER),
            _ => Duration::ZERO,
        };
        if let Some(registry) = registry.filter(|_| !wished.is_zero()) {
            let until = self.registries.entry(registry).or_default();
            *until = (*until).max(now + wished);
        }
        let last_turn = self.turn();
        let random = self.random();
        let Some(entry) = self.entries.get_mut(key) else { return };
        for party in entry.parties.values_mut().filter(|p| p.offer.id == offer) {
            party.turn = last_turn;
        }
        if error.reason.depends_on_asker() {
            entry.refused.insert(offer);
            if entry.parties.values().any(|p| !entry.refused.contains(&p.offer.id)) {
                entry.phase = Phase::Queued;
                // It has had its turn in the queue already.
                self.lane(key.lane()).queue.push_front(key.clone());
                return;
            }
        }
        entry.failures = entry.failures.saturating_add(1);
        let pause = match error.kind {
            Kind::Terminal => LONGEST_PAUSE,
            Kind::Transient { .. } => pause_after(entry.failures),
        };
        entry.due = now + jittered(pause, random).max(wished);
        entry.phase = Phase::Paused {
            until: entry.due,
            failed: true,
        };
        entry.error = Some(error);
        effects.extend(wakes(entry));
    }

    fn timer(&mut self, now: Duration) {
        let mut due: Vec<(Duration, Key)> = Vec::new();
        for (key, entry) in &mut self.entries {
            if let Phase::Paused { until, .. } = entry.phase
                && until <= now
            {
                entry.phase = Phase::Queued;
                entry.refused.clear();
                due.push((until, key.clone()));
            }
        }
        due.sort();
        for (_, key) in due {
            self.lane(key.lane()).queue.push_back(key);
        }
    }

    fn shutdown(&mut self, effects: &mut Vec<Effect<J>>) {
        self.closed = true;
        let askers: Vec<Asker> = self.askers.keys().cloned().collect();
        for asker in &askers {
            self.leave(asker, effects);
        }
    }

    /// Gives free slots to the heads of the queues.
    fn pump(&mut self, now: Duration, effects: &mut Vec<Effect<J>>) {
        for lane in [Lane::Resolve, Lane::Pull] {
            while self.lane(lane).running < self.lane(lane).slots {
                let Some(key) = self.lane(lane).queue.pop_front() else {
                    break;
                };
                let Some(entry) = self.entries.get_mut(&key) else {
                    continue;
                };
                match pick(entry, &self.registries) {
                    Pick::Offer(offer) => {
                        let run = RunId(self.next_run);
                        self.next_run += 1;
                        entry.phase = Phase::Running {
                            run,
                            offer: offer.id,
                            registry: offer.registry,
                        };
                        self.runs.insert(run, key.clone());
                        self.lane(lane).running += 1;
                        effects.push(Effect::Start {
                            run,
                            key,
                            job: offer.job,
                        });
                    }
                    Pick::Wait(until) => {
                        let until = until.max(now);
                        entry.phase = Phase::Paused {
                            until,
                            failed: entry.error.is_some(),
                        };
                    }
                }
            }
        }
    }

    fn arm(&mut self, effects: &mut Vec<Effect<J>>) {
        let paused = self.entries.values().filter_map(|e| match e.phase {
            Phase::Paused { until, .. } => Some(until),
            _ => None,
        });
        let next = paused.min();
        if next != self.armed {
            self.armed = next;
            effects.push(Effect::Arm { at: next });
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            for asker in entry.parties.keys() {
                self.askers.remove(asker);
            }
            self.lane(key.lane()).queue.retain(|k| k != key);
        }
    }

    fn lane(&mut self, lane: Lane) -> &mut LaneState {
        match lane {
            Lane::Resolve => &mut self.resolves,
            Lane::Pull => &mut self.pulls,
        }
    }

    fn lane_ref(&self, lane: Lane) -> &LaneState {
        match lane {
            Lane::Resolve => &self.resolves,
            Lane::Pull => &self.pulls,
        }
    }

    fn turn(&mut self) -> u64 {
        self.next_turn += 1;
        self.next_turn
    }

    /// SplitMix64: enough to spread retries.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

enum Pick<J> {
    Offer(Offer<J>),
    Wait(Duration),
}

/// The offer whose turn it is, among those not refused and whose registry wants no pause.
fn pick<J: Clone, V>(entry: &Entry<J, V>, registries: &BTreeMap<String, Duration>) -> Pick<J> {
    let pause = |p: &Party<J>| p.offer.registry.as_ref().and_then(|r| registries.get(r)).copied();
    let willing = |p: &&Party<J>| !entry.refused.contains(&p.offer.id);
    let free = entry.parties.values().filter(willing).filter(|p| pause(p).is_none());
    match free.min_by_key(|p| p.turn) {
        Some(party) => Pick::Offer(party.offer.clone()),
        // Without anyone willing (the one that was to be tried has left) the last pause goes on.
        None => Pick::Wait(
            entry
                .parties
                .values()
                .filter(willing)
                .filter_map(pause)
                .min()
                .unwrap_or(entry.due),
        ),
    }
}

fn wakes<J, V>(entry: &Entry<J, V>) -> Vec<Effect<J>> {
    let interests: BTreeSet<&Interest> = entry.parties.keys().map(|a| &a.interest).collect();
    interests
        .into_iter()
        .map(|i| Effect::Wake { interest: i.clone() })
        .collect()
}

/// The pause after the n-th failure in a row, before jitter.
fn pause_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(10);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE)
}

/// 90 % to 110 %.
fn jittered(pause: Duration, random: u64) -> Duration {
    let spread = pause.as_millis() as u64 / 5;
    pause - Duration::from_millis(spread / 2) + Duration::from_millis(random % spread.max(1))
}
