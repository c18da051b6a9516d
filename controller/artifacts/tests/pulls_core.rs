//! The pure core of keyed pulls, case by case. Over random inputs: pulls_core_model.rs.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "support/core.rs"]
mod support;

use std::time::Duration;

use support::*;
use vmlet_artifacts::error::{PullError, Reason};
use vmlet_artifacts::pulls::core::*;
use vmlet_artifacts::types::Interest;

/// How long a key is left alone after each of so many failures.
fn pauses(seed: u64, failures: usize, reason: Reason) -> Vec<Duration> {
    let mut core = TestCore::new(SLOTS, seed);
    let mut now = Duration::ZERO;
    let mut effects = core.handle(now, ensure(1, 1, 1));
    let mut pauses = Vec::new();
    while pauses.len() < failures {
        let (run, _) = starts(&effects)[0];
        let result = err(reason);
        let failed = core.handle(now, Input::Done { run, result });
        let armed = failed.iter().find_map(|effect| match effect {
            Effect::Arm { at } => *at,
            _ => None,
        });
        let at = armed.unwrap();
        pauses.push(at - now);
        now = at;
        effects = core.handle(now, Input::Timer);
    }
    pauses
}

#[test]
fn d5_pauses_are_spread_by_a_tenth_to_either_side_and_no_further() {
    let seeds = 200;
    let all: Vec<_> = (0..seeds).map(|seed| pauses(seed, 8, Reason::Unavailable)).collect();
    for n in 0..8 {
        let nominal = FIRST_PAUSE.saturating_mul(1 << n).min(LONGEST_PAUSE);
        let (least, most) = (nominal.mul_f64(0.9), nominal.mul_f64(1.1));
        let mut these: Vec<Duration> = all.iter().map(|pauses| pauses[n]).collect();
        these.sort();
        assert!(these[0] >= least && these[these.len() - 1] <= most, "{n}: {these:?}");
        // They use the room that they have.
        assert!(these[0] < nominal.mul_f64(0.92) && these[these.len() - 1] > nominal.mul_f64(1.08));
        these.dedup();
        assert!(these.len() > 150, "{n}: {} of {seeds} differ", these.len());
    }
    let slow = pauses(7, 3, Reason::NotFound);
    for pause in slow {
        assert!((LONGEST_PAUSE.mul_f64(0.9)..=LONGEST_PAUSE.mul_f64(1.1)).contains(&pause));
    }
}

#[test]
fn twenty_askers_share_one_run_and_are_each_told_once() {
    let mut core = TestCore::new(SLOTS, 0);
    let started: usize = (0..20)
        .map(|n| starts(&core.handle(secs(0), ensure(n, 1, 0))).len())
        .sum();
    assert_eq!(started, 1);
    let effects = core.handle(
        secs(1),
        Input::Done {
            run: RunId(1),
            result: Ok(1),
        },
    );
    assert_eq!(wakes(&effects).len(), 20);
    assert!(core.is_empty(), "S7");
}

#[test]
fn when_the_leaders_credentials_are_refused_the_next_askers_are_tried_before_anybody_fails() {
    let mut core = TestCore::new(SLOTS, 0);
    for n in 0..3 {
        core.handle(secs(0), ensure(n, 1, n));
    }
    let effects = core.handle(
        secs(1),
        Input::Done {
            run: RunId(1),
            result: err(Reason::Unauthorized),
        },
    );
    assert_eq!(starts(&effects), [(RunId(2), "job1".to_string())]);
    assert!(wakes(&effects).is_empty());
    let effects = core.handle(
        secs(1),
        Input::Done {
            run: RunId(2),
            result: err(Reason::Unauthorized),
        },
    );
    assert_eq!(starts(&effects), [(RunId(3), "job2".to_string())]);
    let effects = core.handle(
        secs(1),
        Input::Done {
            run: RunId(3),
            result: err(Reason::Unauthorized),
        },
    );
    assert_eq!(wakes(&effects).len(), 3, "all were refused: all are told");
    // A newcomer with credentials of its own does not wait for the slow back-off; one with known bad ones does.
    assert!(starts(&core.handle(secs(2), ensure(4, 1, 0))).is_empty());
    assert_eq!(starts(&core.handle(secs(2), ensure(5, 1, 9))).len(), 1);
}

#[test]
fn pauses_double_from_10_to_300_seconds_and_success_resets_them() {
    let mut core = TestCore::new(SLOTS, 42);
    let mut now = secs(0);
    core.handle(now, ensure(0, 1, 0));
    let mut run = 1;
    for expected in [10, 20, 40, 80, 160, 300, 300] {
        core.handle(
            now,
            Input::Done {
                run: RunId(run),
                result: err(Reason::Unavailable),
            },
        );
        let Some(View::Paused { until, .. }) = core.view(&asker(0, &key(1))) else {
            panic!("not paused")
        };
        let pause = (until - now).as_secs_f64();
        assert!(
            (0.9 * f64::from(expected)..=1.1 * f64::from(expected)).contains(&pause),
            "{expected}: {pause}"
        );
        now = until;
        run += 1;
        assert_eq!(starts(&core.handle(now, Input::Timer)).len(), 1);
    }
    // The same asker with a changed want starts afresh at once.
    core.handle(
        now,
        Input::Done {
            run: RunId(run),
            result: err(Reason::Unavailable),
        },
    );
    assert_eq!(starts(&core.handle(now, ensure(0, 1, 1))).len(), 1);
    core.handle(
        now,
        Input::Done {
            run: RunId(run + 1),
            result: err(Reason::Unavailable),
        },
    );
    let Some(View::Paused { until, .. }) = core.view(&asker(0, &key(1))) else {
        panic!("not paused")
    };
    assert!(until - now <= secs(11));
}

#[test]
fn a_terminal_error_backs_off_slowly_from_the_first_time() {
    let mut core = TestCore::new(SLOTS, 0);
    core.handle(secs(0), ensure(0, 1, 0));
    core.handle(
        secs(0),
        Input::Done {
            run: RunId(1),
            result: err(Reason::WrongDigest),
        },
    );
    let Some(View::Paused {
        until,
        error: Some(error),
    }) = core.view(&asker(0, &key(1)))
    else {
        panic!("not failed")
    };
    assert!(until >= secs(270) && error.is_terminal());
}

#[test]
fn a_retry_after_holds_for_the_whole_registry_and_for_no_other() {
    let mut core = TestCore::new(SLOTS, 0);
    core.handle(secs(0), ensure(0, 1, 0));
    let limited = Err(PullError::retry_after(Reason::RateLimited, "slow down", secs(120)));
    core.handle(
        secs(0),
        Input::Done {
            run: RunId(1),
            result: limited,
        },
    );
    assert!(
        starts(&core.handle(secs(1), ensure(1, 2, 2))).is_empty(),
        "offers 0 and 2 share a registry"
    );
    assert!(matches!(core.view(&asker(1, &key(2))), Some(View::Paused { until, error: None }) if until == secs(120)));
    assert_eq!(starts(&core.handle(secs(1), ensure(2, 5, 1))).len(), 1);
    // An absurd value is capped.
    let mut core = TestCore::new(SLOTS, 0);
    core.handle(secs(0), ensure(0, 1, 0));
    let absurd = Err(PullError::retry_after(
        Reason::RateLimited,
        "never",
        secs(1_000_000_000),
    ));
    core.handle(
        secs(0),
        Input::Done {
            run: RunId(1),
            result: absurd,
        },
    );
    assert!(matches!(core.view(&asker(0, &key(1))), Some(View::Paused { until, .. }) if until == LONGEST_RETRY_AFTER));
}

#[test]
fn slots_go_to_keys_in_the_order_of_their_arrival() {
    let mut core = TestCore::new(Slots { resolves: 1, pulls: 1 }, 0);
    let keys = [1u8, 2, 3, 5];
    let mut order = Vec::new();
    for (n, k) in keys.iter().enumerate() {
        order.extend(starts(&core.handle(secs(0), ensure(n as u8, *k, n as u8))));
    }
    for run in 1..=4 {
        order.extend(starts(&core.handle(
            secs(1),
            Input::Done {
                run: RunId(run),
                result: Ok(1),
            },
        )));
    }
    let jobs: Vec<&str> = order.iter().map(|(_, job)| job.as_str()).collect();
    assert_eq!(jobs, ["job0", "job1", "job2", "job3"]);
}

#[test]
fn a_late_done_of_an_unknown_run_changes_nothing() {
    let mut core = TestCore::new(SLOTS, 0);
    core.handle(secs(0), ensure(0, 1, 0));
    assert!(
        core.handle(
            secs(0),
            Input::Done {
                run: RunId(99),
                result: Ok(1)
            }
        )
        .is_empty()
    );
    assert!(matches!(
        core.view(&asker(0, &key(1))),
        Some(View::Running { run: RunId(1), .. })
    ));
}

#[test]
fn a_newcomer_gets_a_fresh_answer_and_the_old_one_stays_with_who_has_it() {
    let mut core = TestCore::new(SLOTS, 0);
    let tag = key(0);
    let done = |run, value| Input::Done {
        run: RunId(run),
        result: Ok(value),
    };
    core.handle(secs(0), ensure(0, 0, 0));
    core.handle(secs(0), done(1, 1));
    // The tag has moved since.
    let effects = core.handle(secs(1), ensure(1, 0, 0));
    assert_eq!(starts(&effects).len(), 1);
    assert_eq!(core.view(&asker(0, &tag)), Some(View::Ready(1)));
    assert!(matches!(core.view(&asker(1, &tag)), Some(View::Running { .. })));
    assert_eq!(wakes(&core.handle(secs(1), done(2, 2))), ["uid1"]);
    assert_eq!(core.view(&asker(0, &tag)), Some(View::Ready(1)));
    assert_eq!(core.view(&asker(1, &tag)), Some(View::Ready(2)));
    // Asking again with the same want costs nothing.
    assert!(starts(&core.handle(secs(2), ensure(0, 0, 0))).is_empty());
}

#[test]
fn a_fresh_run_is_cancelled_when_only_those_are_left_who_have_their_answer() {
    let mut core = TestCore::new(SLOTS, 0);
    core.handle(secs(0), ensure(0, 0, 0));
    core.handle(
        secs(0),
        Input::Done {
            run: RunId(1),
            result: Ok(1),
        },
    );
    core.handle(secs(1), ensure(1, 0, 0));
    let release = Input::Release {
        interest: Interest("uid1".into()),
        slot: None,
    };
    assert!(
        core.handle(secs(1), release)
            .contains(&Effect::Cancel { run: RunId(2) })
    );
    let effects = core.handle(
        secs(1),
        Input::Done {
            run: RunId(2),
            result: err(Reason::Cancelled),
        },
    );
    assert!(wakes(&effects).is_empty() && starts(&effects).is_empty());
    assert_eq!(core.view(&asker(0, &key(0))), Some(View::Ready(1)));
}

#[test]
fn when_the_one_who_might_do_better_has_left_the_back_off_goes_on() {
    let mut core = TestCore::new(Slots { resolves: 1, pulls: 1 }, 0);
    core.handle(secs(0), ensure(0, 1, 0));
    let refused = Input::Done {
        run: RunId(1),
        result: err(Reason::Unauthorized),
    };
    core.handle(secs(0), refused);
    // Another key takes the slot; a newcomer with credentials of its own waits for it, and leaves.
    assert_eq!(starts(&core.handle(secs(1), ensure(1, 2, 1))).len(), 1);
    core.handle(secs(2), ensure(2, 1, 9));
    let release = Input::Release {
        interest: Interest("uid2".into()),
        slot: None,
    };
    core.handle(secs(3), release);
    let effects = core.handle(
        secs(4),
        Input::Done {
            run: RunId(2),
            result: Ok(1),
        },
    );
    assert!(
        starts(&effects).is_empty(),
        "the refused credentials are not tried again at once"
    );
    let Some(View::Paused { until, .. }) = core.view(&asker(0, &key(1))) else {
        panic!("not paused")
    };
    assert!(until >= secs(270), "{until:?}");
}

#[test]
fn who_failed_with_a_source_of_ones_own_is_told_of_that_one_and_not_of_anothers() {
    let mut core = TestCore::new(SLOTS, 0);
    for n in 0..3 {
        core.handle(secs(0), ensure(n, 1, n));
    }
    for (run, reason) in [(1, Reason::WrongDigest), (2, Reason::UnsupportedFormat)] {
        let result = Err(PullError::new(reason, format!("source {}", run - 1)));
        let run = RunId(run);
        core.handle(secs(1), Input::Done { run, result });
    }
    let told = |n| match core.view(&asker(n, &key(1))) {
        Some(View::Paused { error: Some(error), .. }) => error.message,
        other => format!("{other:?}"),
    };
    // The third was not asked, for what the second brought is no better anywhere.
    assert_eq!([told(0), told(1), told(2)], ["source 0", "source 1", "source 1"]);
}
