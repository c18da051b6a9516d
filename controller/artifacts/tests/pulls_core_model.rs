//! The pure core of keyed pulls beside a simple onlooker, over random inputs: its invariants (named as in `pulls::core`).

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "support/core.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use support::*;
use vmlet_artifacts::error::{PullError, Reason};
use vmlet_artifacts::pulls::core::*;
use vmlet_artifacts::types::Interest;

#[derive(Clone, Debug)]
enum Op {
    Ensure(u8, u8, u8),
    Release(u8),
    Done(u8, u8),
    Later(u16),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..6u8, 0..6u8, 0..3u8).prop_map(|(a, k, o)| Op::Ensure(a, k, o)),
        2 => (0..6u8).prop_map(Op::Release),
        3 => (any::<u8>(), 0..6u8).prop_map(|(r, o)| Op::Done(r, o)),
        1 => (0..400u16).prop_map(Op::Later),
    ]
}

/// What somebody wants, what it brought, and whether it has its answer.
struct Want {
    key: Key,
    offer: u8,
    answered: bool,
}

/// What an onlooker knows: who wants what, and which runs are alive.
#[derive(Default)]
struct Model {
    wants: BTreeMap<Asker, Want>,
    runs: BTreeMap<RunId, (Key, bool)>,
    alarm: Option<Duration>,
}

impl Model {
    fn wanting(&self, key: &Key) -> BTreeSet<String> {
        self.wants
            .iter()
            .filter(|(_, want)| want.key == *key && !want.answered)
            .map(|(a, _)| a.interest.0.clone())
            .collect()
    }

    fn see(&mut self, effects: &[Effect<String>]) {
        for effect in effects {
            match effect {
                Effect::Start { run, key, .. } => {
                    assert!(self.runs.values().all(|(k, _)| k != key), "S1: two runs of {key:?}");
                    assert!(!self.wanting(key).is_empty(), "started for nobody: {key:?}");
                    self.runs.insert(*run, (key.clone(), false));
                    let alive = self.runs.values().filter(|(k, _)| k.lane() == key.lane()).count();
                    let slots = if key.lane() == Lane::Resolve {
                        SLOTS.resolves
                    } else {
                        SLOTS.pulls
                    };
                    assert!(alive <= slots, "S4: {alive} runs in {slots} slots");
                }
                Effect::Cancel { run } => {
                    let (key, cancelled) = self.runs[run].clone();
                    assert!(!cancelled, "cancelled twice");
                    assert!(self.wanting(&key).is_empty(), "L5: {key:?} is still wanted");
                    self.runs.insert(*run, (key, true));
                }
                Effect::Arm { at } => self.alarm = *at,
                Effect::Wake { .. } => {}
            }
        }
    }

    fn check(&self, core: &TestCore, now: Duration) {
        let mut known: BTreeSet<&Key> = self.wants.values().map(|want| &want.key).collect();
        known.extend(self.runs.values().map(|(k, _)| k));
        assert_eq!(core.len(), known.len(), "S7: entries that nobody wants");
        for (key, cancelled) in self.runs.values() {
            assert!(
                *cancelled || !self.wanting(key).is_empty(),
                "L4: a run that nobody wants is not cancelled"
            );
        }
        let mut earliest = None;
        for (asker, Want { key, answered, .. }) in &self.wants {
            let alive = self.runs.values().any(|(k, _)| k == key);
            let view = core.view(asker).expect("who wants something is known");
            assert_eq!(
                *answered,
                matches!(view, View::Ready(_)),
                "an answer stays with who got it, and is nobody else's: {asker:?}"
            );
            match view {
                View::Queued { .. } if !alive => {
                    let busy = self.runs.values().filter(|(k, _)| k.lane() == key.lane()).count();
                    let slots = if key.lane() == Lane::Resolve {
                        SLOTS.resolves
                    } else {
                        SLOTS.pulls
                    };
                    assert_eq!(busy, slots, "S5: {key:?} waits beside a free slot");
                }
                View::Paused { until, .. } => earliest = Some(earliest.map_or(until, |e: Duration| e.min(until))),
                View::Running { .. } => assert!(alive),
                _ => {}
            }
        }
        assert_eq!(
            self.alarm, earliest,
            "L2: the alarm stands at the earliest pause's end (now {now:?})"
        );
    }

    fn done(&mut self, core: &mut TestCore, now: Duration, run: RunId, result: Result<u32, PullError>) {
        let (key, cancelled) = self.runs.remove(&run).expect("alive");
        let waiting = self.wanting(&key);
        let (succeeded, failed) = (result.is_ok(), result.clone().err());
        let effects = core.handle(now, Input::Done { run, result });
        let woken = wakes(&effects);
        let unique: BTreeSet<String> = woken.iter().cloned().collect();
        assert_eq!(woken.len(), unique.len(), "L6: somebody was woken twice");
        let next_offer = failed.is_some_and(|e| e.reason.depends_on_asker()) && woken.is_empty();
        if cancelled {
            assert!(woken.is_empty(), "S6: the result of a cancelled run was told");
        } else if !next_offer {
            assert_eq!(unique, waiting, "L1: all who wait are told");
        }
        if succeeded && !cancelled {
            self.wants.retain(|_, want| want.key != key || key.keeps_result());
            for want in self.wants.values_mut().filter(|want| want.key == key) {
                want.answered = true;
            }
        }
        self.see(&effects);
    }
}

fn outcome(n: u8) -> Result<u32, PullError> {
    match n {
        0 | 1 => Ok(7),
        2 => err(Reason::Unavailable),
        3 => err(Reason::Unauthorized),
        4 => err(Reason::Internal),
        _ => Err(PullError::retry_after(Reason::RateLimited, "scripted", secs(60))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_invariant_holds_after_every_input(ops in prop::collection::vec(op(), 1..80), seed: u64) {
        let mut core = TestCore::new(SLOTS, seed);
        let mut model = Model::default();
        let mut now = Duration::ZERO;
        for op in ops {
            match op {
                Op::Ensure(who, what, how) => {
                    let key = key(what);
                    let same = model.wants.get(&asker(who, &key)).filter(|want| want.key == key && want.offer == how);
                    let answered = same.is_some_and(|want| want.answered);
                    let want = Want { key: key.clone(), offer: how, answered };
                    model.wants.insert(asker(who, &key), want);
                    let effects = core.handle(now, ensure(who, what, how));
                    model.see(&effects);
                }
                Op::Release(who) => {
                    let interest = Interest(format!("uid{who}"));
                    model.wants.retain(|a, _| a.interest != interest);
                    let effects = core.handle(now, Input::Release { interest, slot: None });
                    model.see(&effects);
                }
                Op::Done(nth, how) => {
                    if let Some(run) = model.runs.keys().nth(nth as usize % model.runs.len().max(1)).copied() {
                        model.done(&mut core, now, run, outcome(how));
                    }
                }
                Op::Later(by) => {
                    now += secs(u64::from(by));
                    if model.alarm.is_some_and(|at| at <= now) {
                        let effects = core.handle(now, Input::Timer);
                        model.see(&effects);
                    }
                }
            }
            model.check(&core, now);
        }
        // L1, L3, L7: when all work succeeds from here on, everybody gets a result.
        for _ in 0..200 {
            if let Some(at) = model.alarm {
                now = now.max(at);
                let effects = core.handle(now, Input::Timer);
                model.see(&effects);
            }
            for run in model.runs.keys().copied().collect::<Vec<_>>() {
                model.done(&mut core, now, run, Ok(1));
            }
            model.check(&core, now);
        }
        for asker in model.wants.keys() {
            let ready = matches!(core.view(asker), Some(View::Ready(_)));
            prop_assert!(ready, "L1: {asker:?} never got its answer: {:?}", core.view(asker));
        }
        // L8.
        let effects = core.handle(now, Input::Shutdown);
        prop_assert!(starts(&effects).is_empty() && core.is_empty() && core.is_idle());
        prop_assert!(core.handle(now, ensure(0, 0, 0)).is_empty());
    }
}
