//! What to do about a machine next: the run strategies, restarts and the crash back-off. Pure.
//!
//! ```text
//!            start                     ready
//!  (none) ──────────> starting ─────────────> running ──┐
//!    ^                   │                       │      │ stop asked: Halted, restartedAt
//!    │                   │ ends                  │ ends v
//!    │  strategy says    v                       v    stopping
//!    └─── again ───── ended(run, termination) <─────────┘
//! ```

use std::time::{Duration, SystemTime};

use vmlet_crds::RunStrategy;

/// First delay of the crash back-off; it doubles with each failure.
pub const BACKOFF_BASE: Duration = Duration::from_secs(10);
/// Longest delay of the crash back-off.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A run that lasted this long makes the next failure count as the first.
pub const BACKOFF_RESET: Duration = Duration::from_secs(600);

/// How far a machine is, as far as the decision cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// Never started on this node.
    New,
    /// Starting, running or paused.
    Alive,
    /// On its way down.
    Stopping,
    /// Not running; the last run ended so.
    Ended(End),
    /// Something runs that the agent cannot control.
    Unmanageable,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Why, as far as the decision cares.
    pub cause: Cause,
    /// When.
    pub at: SystemTime,
    /// How long the run lasted.
    pub lasted: Duration,
}

/// Why a run ended, as far as the decision cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It was asked to: Halted or a restart.
    Declared,
    /// By itself, cleanly.
    Clean,
    /// By itself, with a failure.
    Failure,
    /// The host went down under it.
    HostReboot,
}

/// Everything that the decision depends on.
#[derive(Clone, Debug)]
pub struct Situation {
    /// From spec.
    pub strategy: RunStrategy,
    /// Whether spec.restartedAt holds a value that has not been acted on.
    pub restart_asked: bool,
    /// How far the machine is.
    pub life: Life,
    /// Failures in a row, the last end included.
    pub failures: u32,
    /// Now.
    pub now: SystemTime,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start it.
    Start {
        /// Whether this start was asked for, so that an ephemeral disk is thrown away and the
        /// restart does not count.
        declared: bool,
    },
    /// Let it run, with what can change while it runs.
    Keep,
    /// Ask it to stop.
    Stop,
    /// Leave it stopped: Halted.
    Rest,
    /// Leave it stopped: its work is done.
    Complete {
        /// Whether the last run ended cleanly.
        succeeded: bool,
    },
    /// Start it at this time.
    Wait {
        /// When.
        until: SystemTime,
    },
    /// Wait for something that will wake us.
    Watch,
}

/// Decides what to do about a machine.
pub fn decide(s: &Situation) -> Decision {
    let halted = s.strategy == RunStrategy::Halted;
    match &s.life {
        Life::Stopping => Decision::Watch,
        // What cannot be talked to can be stopped all the same.
        Life::Alive | Life::Unmanageable if halted || s.restart_asked => Decision::Stop,
        Life::Alive => Decision::Keep,
        Life::Unmanageable => Decision::Watch,
        Life::New if halted => Decision::Rest,
        Life::New => Decision::Start { declared: true },
        Life::Ended(_) if halted => Decision::Rest,
        Life::Ended(_) if s.restart_asked => Decision::Start { declared: true },
        Life::Ended(end) => after(s, end),
    }
}

fn after(s: &Situation, end: &End) -> Decision {
    match (s.strategy, end.cause) {
        (_, Cause::Declared) => Decision::Start { declared: true },
        // The machine did not end; its host did. Once has had its run cut off, not finished.
        (_, Cause::HostReboot) => Decision::Start { declared: false },
        (RunStrategy::Once, cause) => Decision::Complete {
            succeeded: cause == Cause::Clean,
        },
        (RunStrategy::RerunOnFailure, Cause::Clean) => Decision::Complete { succeeded: true },
        _ => {
            let until = end.at + backoff(s.failures.max(1));
            if s.now >= until {
                Decision::Start { declared: false }
            } else {
                Decision::Wait { until }
            }
        }
    }
}

/// Delay after the n-th failure in a row: 10 s, 20 s, 40 s ... 300 s. None after the zeroth.
pub fn backoff(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => BACKOFF_BASE.saturating_mul(1 << (n - 1).min(16)).min(BACKOFF_MAX),
    }
}

/// Failures in a row once this end has been seen.
pub fn failures_after(before: u32, end: &End) -> u32 {
    match end.cause {
        Cause::Declared | Cause::HostReboot => 0,
        Cause::Clean | Cause::Failure if end.lasted >= BACKOFF_RESET => 1,
        Cause::Clean | Cause::Failure => before.saturating_add(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn ended(strategy: RunStrategy, cause: Cause, failures: u32, now: u64) -> Decision {
        let end = End {
            cause,
            at: at(1000),
            lasted: Duration::from_secs(5),
        };
        decide(&Situation {
            strategy,
            restart_asked: false,
            life: Life::Ended(end),
            failures,
            now: at(now),
        })
    }

    #[test]
    fn always_starts_again_after_any_end_once_the_back_off_is_over() {
        for cause in [Cause::Clean, Cause::Failure] {
            assert_eq!(
                ended(RunStrategy::Always, cause, 1, 1009),
                Decision::Wait { until: at(1010) }
            );
            assert_eq!(
                ended(RunStrategy::Always, cause, 1, 1010),
                Decision::Start { declared: false }
            );
        }
    }

    #[test]
    fn rerun_on_failure_rests_after_a_clean_end() {
        assert_eq!(
            ended(RunStrategy::RerunOnFailure, Cause::Clean, 1, 9999),
            Decision::Complete { succeeded: true }
        );
        assert_eq!(
            ended(RunStrategy::RerunOnFailure, Cause::Failure, 1, 9999),
            Decision::Start { declared: false }
        );
    }

    #[test]
    fn once_runs_once_whatever_its_end() {
        assert_eq!(
            ended(RunStrategy::Once, Cause::Clean, 1, 9999),
            Decision::Complete { succeeded: true }
        );
        assert_eq!(
            ended(RunStrategy::Once, Cause::Failure, 1, 9999),
            Decision::Complete { succeeded: false }
        );
    }

    #[test]
    fn a_host_reboot_is_followed_by_one_start_at_once_without_throwing_a_disk_away() {
        for strategy in [RunStrategy::Always, RunStrategy::RerunOnFailure, RunStrategy::Once] {
            assert_eq!(
                ended(strategy, Cause::HostReboot, 0, 1000),
                Decision::Start { declared: false }
            );
        }
    }

    #[test]
    fn halted_stops_what_lives_and_starts_nothing() {
        let mut s = Situation {
            strategy: RunStrategy::Halted,
            restart_asked: true,
            life: Life::Alive,
            failures: 0,
            now: at(1),
        };
        assert_eq!(decide(&s), Decision::Stop);
        s.life = Life::New;
        assert_eq!(decide(&s), Decision::Rest);
        assert_eq!(ended(RunStrategy::Halted, Cause::Failure, 3, 9999), Decision::Rest);
    }

    #[test]
    fn a_restart_stops_a_living_machine_and_starts_an_ended_one_without_waiting() {
        let end = End {
            cause: Cause::Failure,
            at: at(1000),
            lasted: Duration::ZERO,
        };
        let mut s = Situation {
            strategy: RunStrategy::Once,
            restart_asked: true,
            life: Life::Alive,
            failures: 5,
            now: at(1000),
        };
        assert_eq!(decide(&s), Decision::Stop);
        s.life = Life::Stopping;
        assert_eq!(decide(&s), Decision::Watch);
        s.life = Life::Ended(end);
        assert_eq!(decide(&s), Decision::Start { declared: true });
    }

    #[test]
    fn what_cannot_be_controlled_is_never_started_twice() {
        let s = Situation {
            strategy: RunStrategy::Always,
            restart_asked: false,
            life: Life::Unmanageable,
            failures: 0,
            now: at(1),
        };
        assert_eq!(decide(&s), Decision::Watch);
    }

    #[test]
    fn what_cannot_be_controlled_is_stopped_when_that_is_asked_for() {
        for (strategy, restart_asked) in [(RunStrategy::Halted, false), (RunStrategy::Always, true)] {
            let s = Situation {
                strategy,
                restart_asked,
                life: Life::Unmanageable,
                failures: 0,
                now: at(1),
            };
            assert_eq!(decide(&s), Decision::Stop);
        }
    }

    #[test]
    fn the_back_off_doubles_up_to_five_minutes_and_is_forgotten_after_a_long_run() {
        let seconds: Vec<u64> = (0..8).map(|n| backoff(n).as_secs()).collect();
        assert_eq!(seconds, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
        let mut end = End {
            cause: Cause::Failure,
            at: at(0),
            lasted: Duration::from_secs(599),
        };
        assert_eq!(failures_after(4, &end), 5);
        end.lasted = BACKOFF_RESET;
        assert_eq!(failures_after(4, &end), 1);
        end.cause = Cause::Declared;
        assert_eq!(failures_after(4, &end), 0);
    }

    mod model {
        use super::*;
        use proptest::prelude::*;

        fn situations() -> impl Strategy<Value = Situation> {
            let cause = prop_oneof![
                Just(Cause::Declared),
                Just(Cause::Clean),
                Just(Cause::Failure),
                Just(Cause::HostReboot)
            ];
            let ended = (cause, 0..100_000_u64, 0..5_000_u64).prop_map(|(cause, end, lasted)| {
                Life::Ended(End {
                    cause,
                    at: at(end),
                    lasted: Duration::from_secs(lasted),
                })
            });
            let life = prop_oneof![
                Just(Life::New),
                Just(Life::Alive),
                Just(Life::Stopping),
                Just(Life::Unmanageable),
                ended
            ];
            let strategy = prop_oneof![
                Just(RunStrategy::Always),
                Just(RunStrategy::RerunOnFailure),
                Just(RunStrategy::Once),
                Just(RunStrategy::Halted)
            ];
            (strategy, any::<bool>(), life, any::<u32>(), 0..200_000_u64).prop_map(
                |(strategy, restart_asked, life, failures, now)| Situation {
                    strategy,
                    restart_asked,
                    life,
                    failures,
                    now: at(now),
                },
            )
        }

        proptest! {
            #[test]
            fn nothing_that_may_live_is_started(s in situations()) {
                if matches!(s.life, Life::Alive | Life::Stopping | Life::Unmanageable) {
                    let starts = matches!(decide(&s), Decision::Start { .. } | Decision::Wait { .. });
                    prop_assert!(!starts);
                }
            }

            #[test]
            fn halted_starts_nothing_and_only_what_lives_is_stopped(s in situations()) {
                let decision = decide(&s);
                if s.strategy == RunStrategy::Halted {
                    let starts = matches!(decision, Decision::Start { .. } | Decision::Wait { .. });
                    prop_assert!(!starts);
                }
                prop_assert!(decision != Decision::Stop || matches!(s.life, Life::Alive | Life::Unmanageable));
            }

            #[test]
            fn a_wait_is_for_the_future_bounded_and_followed_by_a_start(s in situations()) {
                if let Decision::Wait { until } = decide(&s) {
                    prop_assert!(until > s.now);
                    let Life::Ended(end) = &s.life else { panic!("only an end is waited after") };
                    prop_assert!(until <= end.at + BACKOFF_MAX);
                    let later = Situation { now: until, ..s };
                    prop_assert_eq!(decide(&later), Decision::Start { declared: false });
                }
            }

            #[test]
            fn what_has_ended_always_comes_to_rest_or_to_a_start(s in situations()) {
                if matches!(s.life, Life::Ended(_) | Life::New) {
                    let stuck = matches!(decide(&s), Decision::Watch | Decision::Keep | Decision::Stop);
                    prop_assert!(!stuck);
                }
            }
        }
    }
}
