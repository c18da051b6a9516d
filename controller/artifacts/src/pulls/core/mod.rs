//! The pure core of keyed pulls: inputs in, effects out. It reads no clock and does no I/O.
//!
//! ```text
//!                 first Ensure                slot free
//!      (absent) ───────────────▶ Queued ─────────────────▶ Running ──success──▶ Settled (kept keys)
//!         ▲                       ▲  ▲ ▲                    │ │ │                or absent
//!         │ last asker gone       │  │ └─next asker's offer─┘ │ │
//!         ├───────────────────────┘  │                        │ └─failure──▶ Paused ──Timer──▶ Queued
//!         │                          │ newcomer meanwhile     │ last asker gone
//!         └────────Done──────── Cancelling ◀──────────────────┘
//! ```
//!
//! In a settled key every asker has its answer. It keeps it until it leaves; a newcomer gets a run of its own,
//! for an answer that somebody still holds may be old. "Asker" below is one without an answer.
//!
//! Invariants (tested in `tests/pulls_core.rs` and `tests/pulls_core_model.rs` under these names):
//! S1 at most one run per key. S4 runs never exceed the lane's slots; a waiter holds none.
//! S6 a result goes only to those who asked before the run was cancelled. S7 no entry without an asker or a run.
//! L1 every asker is woken with a result or an error. L3 slots are first come, first served.
//! L4 the last asker's leaving cancels; a newcomer gets a fresh run after the old one's `Done`.
//! L5 one asker's leaving disturbs no other. L6 a failure wakes each asker once, keys back off alone.
//! L7 a failed or panicked key can be used again. L8 shutdown cancels all and starts nothing.

mod pause;
mod vocabulary;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::error::{Kind, PullError};
use crate::types::Interest;
pub use pause::{FIRST_PAUSE, LONGEST_PAUSE, LONGEST_RETRY_AFTER};
use pause::{Random, jittered, pause_after};
pub use vocabulary::{Asker, Effect, Input, Key, Lane, Offer, RunId, Slot, Slots, View};

#[derive(Debug)]
enum Phase {
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
    Settled,
}

#[derive(Debug)]
struct Party<J, V> {
    offer: Offer<J>,
    /// The lowest turn is tried next.
    turn: u64,
    /// Of keys whose results are kept.
    answer: Option<V>,
    /// The last failure of its own offer. That of another's speaks of another's source.
    error: Option<PullError>,
}

#[derive(Debug)]
struct Entry<J, V> {
    phase: Phase,
    parties: BTreeMap<Asker, Party<J, V>>,
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
    random: Random,
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
            random: Random(seed),
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

    /// How far an asker's want is; `None` when it wants nothing.
    pub fn view(&self, asker: &Asker) -> Option<View<V>> {
        let key = self.askers.get(asker)?;
        let entry = self.entries.get(key)?;
        let party = entry.parties.get(asker);
        if let Some(answer) = party.and_then(|party| party.answer.clone()) {
            return Some(View::Ready(answer));
        }
        let own = party.and_then(|party| party.error.as_ref());
        let before = entry.error.as_ref().map(|error| own.unwrap_or(error).clone());
        Some(match &entry.phase {
            Phase::Queued => {
                let queue = &self.lane_ref(key.lane()).queue;
                View::Queued {
                    position: queue.iter().position(|k| k == key).unwrap_or_default(),
                    before,
                }
            }
            Phase::Cancelling | Phase::Settled => View::Queued { position: 0, before },
            Phase::Running { run, .. } => View::Running { run: *run, before },
            Phase::Paused { until, .. } => View::Paused {
                until: *until,
                error: before,
            },
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
        let party = |offer| Party {
            offer,
            turn,
            answer: None,
            error: None,
        };
        let Some(entry) = self.entries.get_mut(&key) else {
            let entry = Entry {
                phase: Phase::Queued,
                parties: BTreeMap::from([(asker, party(offer))]),
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
        let changed = entry.parties.insert(asker, party(offer)).is_some();
        let failed = match entry.phase {
            Phase::Paused { failed, .. } => failed,
            Phase::Settled => false,
            _ => return,
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
        if entry.waiting().next().is_some() {
            return;
        }
        match entry.phase {
            Phase::Running { run, .. } => {
                entry.phase = Phase::Cancelling;
                effects.push(Effect::Cancel { run });
            }
            // Its run is still alive: the entry stays until `Done`.
            Phase::Cancelling => {}
            _ if entry.parties.is_empty() => self.forget(&key),
            Phase::Queued | Phase::Paused { .. } => {
                entry.settle();
                self.lane(key.lane()).queue.retain(|k| *k != key);
            }
            Phase::Settled => {}
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
            _ if entry.waiting().next().is_none() => return entry.settle(),
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
                    for party in entry.parties.values_mut() {
                        party.answer.get_or_insert_with(|| value.clone());
                    }
                    entry.settle();
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
        let random = self.random.next();
        let Some(entry) = self.entries.get_mut(key) else { return };
        for party in entry.parties.values_mut().filter(|p| p.offer.id == offer) {
            party.turn = last_turn;
            party.error = Some(error.clone());
        }
        if error.reason.depends_on_asker() {
            entry.refused.insert(offer);
            if entry.waiting().any(|(_, p)| !entry.refused.contains(&p.offer.id)) {
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
}

impl<J, V> Entry<J, V> {
    /// The askers that have no answer yet.
    fn waiting(&self) -> impl Iterator<Item = (&Asker, &Party<J, V>)> {
        self.parties.iter().filter(|(_, party)| party.answer.is_none())
    }

    /// Everybody has an answer.
    fn settle(&mut self) {
        self.phase = Phase::Settled;
        self.error = None;
        for party in self.parties.values_mut() {
            party.error = None;
        }
        self.failures = 0;
        self.refused.clear();
    }
}

enum Pick<J> {
    Offer(Offer<J>),
    Wait(Duration),
}

/// The offer whose turn it is, among those not refused and whose registry wants no pause.
fn pick<J: Clone, V>(entry: &Entry<J, V>, registries: &BTreeMap<String, Duration>) -> Pick<J> {
    let pause = |p: &Party<J, V>| p.offer.registry.as_ref().and_then(|r| registries.get(r)).copied();
    let willing = || {
        let parties = entry.waiting().map(|(_, party)| party);
        parties.filter(|p| !entry.refused.contains(&p.offer.id))
    };
    let free = willing().filter(|p| pause(p).is_none());
    match free.min_by_key(|p| p.turn) {
        Some(party) => Pick::Offer(party.offer.clone()),
        // Without anyone willing (the one that was to be tried has left) the last pause goes on.
        None => Pick::Wait(willing().filter_map(pause).min().unwrap_or(entry.due)),
    }
}

fn wakes<J, V>(entry: &Entry<J, V>) -> Vec<Effect<J>> {
    let interests: BTreeSet<&Interest> = entry.waiting().map(|(a, _)| &a.interest).collect();
    interests
        .into_iter()
        .map(|i| Effect::Wake { interest: i.clone() })
        .collect()
}
