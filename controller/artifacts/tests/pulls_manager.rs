//! The owner task with a scripted body, on paused time: nothing here sleeps or races.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};
use vmlet_artifacts::error::{PullError, Reason};
use vmlet_artifacts::pulls::core::{Asker, Key, Offer, Slot, Slots};
use vmlet_artifacts::pulls::manager::{Body, Manager, Run};
use vmlet_artifacts::types::{Interest, Phase, State};

enum Ending {
    Ok(u32),
    Err(Reason),
    /// The registry said when to come again.
    After(Duration),
    Panic,
}

/// One started body, in the hands of the test.
struct Started {
    job: String,
    run: Run,
    end: oneshot::Sender<Ending>,
}

struct Bench {
    manager: Manager<String, u32>,
    bodies: mpsc::UnboundedReceiver<Started>,
    wakes: mpsc::Receiver<Interest>,
}

fn bench(pulls: usize) -> Bench {
    let (started, bodies) = mpsc::unbounded_channel();
    let (wake, wakes) = mpsc::channel(1);
    let body: Body<String, u32> = Arc::new(move |job, run| {
        let started = started.clone();
        async move {
            let (end, ended) = oneshot::channel();
            started.send(Started { job, run, end }).ok();
            match ended.await {
                Ok(Ending::Ok(value)) => Ok(Arc::new(value)),
                Ok(Ending::Err(reason)) => Err(PullError::new(reason, "scripted")),
                Ok(Ending::After(pause)) => Err(PullError::retry_after(Reason::RateLimited, "scripted", pause)),
                Ok(Ending::Panic) => panic!("scripted panic"),
                Err(_) => Err(PullError::cancelled()),
            }
        }
        .boxed()
    });
    Bench {
        manager: Manager::start(Slots { resolves: 1, pulls }, 1, body, wake),
        bodies,
        wakes,
    }
}

impl Bench {
    async fn ensure(&self, who: &str, key: &str, offer: &str) -> State<u32> {
        let asker = Asker {
            interest: Interest(who.into()),
            slot: Slot::Image,
        };
        let offer = Offer {
            id: offer.into(),
            registry: None,
            job: format!("{key} by {offer}"),
        };
        self.manager.ensure(asker, Key::Image(key.into()), offer).await
    }

    async fn resolve(&self, who: &str, key: &str) -> State<u32> {
        let asker = Asker {
            interest: Interest(who.into()),
            slot: Slot::Resolve,
        };
        let offer = Offer {
            id: key.into(),
            registry: None,
            job: key.into(),
        };
        self.manager.ensure(asker, Key::Resolve(key.into()), offer).await
    }

    async fn release(&self, who: &str) {
        self.manager.release(Interest(who.into()), None).await;
    }

    async fn started(&mut self) -> Started {
        self.bodies.recv().await.expect("the manager lives")
    }

    /// Nothing more has been started once the owner task has answered a later request.
    async fn nothing_started(&mut self) {
        self.release("nobody").await;
        tokio::task::yield_now().await;
        assert!(self.bodies.try_recv().is_err(), "a second body was started");
    }

    async fn woken(&mut self) -> String {
        self.wakes.recv().await.expect("the manager lives").0
    }
}

fn is_running<T>(state: &State<T>) -> bool {
    matches!(state, State::Waiting(w) if w.phase == Phase::Running)
}

#[tokio::test(start_paused = true)]
async fn twenty_askers_get_one_body_and_one_wake_each() {
    let mut b = bench(3);
    for n in 0..20 {
        assert!(is_running(&b.ensure(&format!("uid{n:02}"), "a", "x").await));
    }
    let body = b.started().await;
    b.nothing_started().await;
    body.end.send(Ending::Ok(1)).ok();
    let mut woken = Vec::new();
    for _ in 0..20 {
        woken.push(b.woken().await);
    }
    woken.dedup();
    assert_eq!(woken.len(), 20);
    b.nothing_started().await;
    assert!(b.wakes.try_recv().is_err(), "nobody is woken twice");
}

#[tokio::test(start_paused = true)]
async fn distinct_keys_run_side_by_side_up_to_the_slots_and_first_come_first_served() {
    let mut b = bench(2);
    for key in ["a", "b", "c", "d"] {
        b.ensure(key, key, "x").await;
    }
    // Rendezvous: two bodies are alive at the same time, and not a third.
    let (first, second) = (b.started().await, b.started().await);
    b.nothing_started().await;
    assert!(matches!(b.ensure("d", "d", "x").await, State::Waiting(w) if w.phase == Phase::Queued { position: 1 }));
    second.end.send(Ending::Ok(1)).ok();
    let third = b.started().await;
    assert_eq!((first.job.as_str(), third.job.as_str()), ("a by x", "c by x"));
}

#[tokio::test(start_paused = true)]
async fn the_first_asker_may_leave_and_the_second_still_gets_the_result() {
    let mut b = bench(1);
    b.ensure("first", "a", "x").await;
    b.ensure("second", "a", "x").await;
    let body = b.started().await;
    b.release("first").await;
    assert!(!body.run.cancel.is_cancelled());
    body.end.send(Ending::Ok(1)).ok();
    assert_eq!(b.woken().await, "second");
}

#[tokio::test(start_paused = true)]
async fn an_asker_whose_future_is_dropped_harms_nobody() {
    let mut b = bench(1);
    {
        let dropped = b.ensure("first", "a", "x");
        futures::pin_mut!(dropped);
        assert!(futures::poll!(&mut dropped).is_pending());
    }
    assert!(is_running(&b.ensure("second", "a", "x").await));
    b.started().await.end.send(Ending::Ok(1)).ok();
    let woken = [b.woken().await, b.woken().await];
    assert!(woken.contains(&"second".to_string()));
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_during_cancellation_gets_a_fresh_run_after_the_old_one_has_ended() {
    let mut b = bench(2);
    b.ensure("first", "a", "x").await;
    let old = b.started().await;
    b.release("first").await;
    assert!(old.run.cancel.is_cancelled());
    assert!(matches!(b.ensure("second", "a", "x").await, State::Waiting(_)));
    b.nothing_started().await;
    old.end.send(Ending::Ok(1)).ok();
    let fresh = b.started().await;
    assert!(!fresh.run.cancel.is_cancelled());
    assert!(b.wakes.try_recv().is_err(), "the cancelled run's result is nobody's");
    fresh.end.send(Ending::Ok(2)).ok();
    assert_eq!(b.woken().await, "second");
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_its_own_key_and_the_key_can_be_used_again() {
    let mut b = bench(2);
    b.ensure("one", "a", "x").await;
    b.ensure("two", "b", "x").await;
    let (panicking, other) = (b.started().await, b.started().await);
    panicking.end.send(Ending::Panic).ok();
    assert_eq!(b.woken().await, "one");
    assert!(matches!(b.ensure("one", "a", "x").await, State::Failed(f) if f.reason == "Internal" && !f.terminal));
    other.end.send(Ending::Ok(1)).ok();
    assert_eq!(b.woken().await, "two");
    // Paused time jumps to the end of the back-off.
    let again = b.started().await;
    again.end.send(Ending::Ok(1)).ok();
    assert_eq!(b.woken().await, "one");
}

#[tokio::test(start_paused = true)]
async fn refused_credentials_are_followed_by_the_next_askers() {
    let mut b = bench(1);
    b.ensure("one", "a", "bad").await;
    b.ensure("two", "a", "good").await;
    let body = b.started().await;
    assert_eq!(body.job, "a by bad");
    body.end.send(Ending::Err(Reason::Unauthorized)).ok();
    let body = b.started().await;
    assert_eq!(body.job, "a by good");
    body.end.send(Ending::Ok(1)).ok();
    assert_eq!([b.woken().await, b.woken().await], ["one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_twice_hears_the_same_time_of_the_next_try() {
    let mut b = bench(1);
    b.ensure("one", "a", "x").await;
    b.started().await.end.send(Ending::Err(Reason::Unavailable)).ok();
    b.woken().await;
    let State::Failed(first) = b.ensure("one", "a", "x").await else {
        panic!("it failed")
    };
    // By the wall clock it is later now.
    let then = std::time::Instant::now();
    while then.elapsed() < Duration::from_millis(2) {
        std::thread::yield_now();
    }
    let State::Failed(second) = b.ensure("one", "a", "x").await else {
        panic!("it failed")
    };
    assert_eq!(first.retry_at, second.retry_at);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_once_and_tried_again_after_its_pause() {
    let mut b = bench(1);
    b.ensure("one", "a", "x").await;
    let before = tokio::time::Instant::now();
    b.started().await.end.send(Ending::Err(Reason::Unavailable)).ok();
    assert_eq!(b.woken().await, "one");
    let again = b.started().await;
    let waited = before.elapsed();
    assert!(
        waited >= Duration::from_secs(9) && waited <= Duration::from_secs(11),
        "{waited:?}"
    );
    assert!(b.wakes.try_recv().is_err(), "the start of the next try wakes nobody");
    assert!(matches!(b.ensure("one", "a", "x").await, State::Waiting(w) if w.message.contains("scripted")));
    again.end.send(Ending::Ok(1)).ok();
    assert_eq!(b.woken().await, "one");
}

#[tokio::test(start_paused = true)]
async fn h61_after_a_retry_after_and_not_before_it_goes_on_by_itself() {
    let mut b = bench(1);
    b.ensure("one", "a", "x").await;
    let pause = Duration::from_secs(120);
    let mut body = b.started().await;
    // However often it is said: it is no back-off that grows.
    for _ in 0..3 {
        let before = tokio::time::Instant::now();
        body.end.send(Ending::After(pause)).ok();
        assert_eq!(b.woken().await, "one");
        body = b.started().await;
        let waited = before.elapsed();
        assert!(waited >= pause && waited < pause + Duration::from_secs(1), "{waited:?}");
    }
    body.end.send(Ending::Ok(1)).ok();
    assert_eq!(b.woken().await, "one");
}

#[tokio::test(start_paused = true)]
async fn progress_is_seen_by_whoever_asks_and_wakes_nobody() {
    let mut b = bench(1);
    b.ensure("one", "a", "x").await;
    let body = b.started().await;
    body.run.progress.set_total(10);
    body.run.progress.add_done(4);
    body.run.progress.set_stage("pulling");
    let State::Waiting(waiting) = b.ensure("one", "a", "x").await else {
        panic!("not waiting")
    };
    assert_eq!(
        (waiting.done_bytes, waiting.total_bytes, waiting.message.as_str()),
        (4, 10, "pulling")
    );
    assert!(b.wakes.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_resolve_stays_answered_until_it_is_released() {
    let mut b = bench(1);
    b.resolve("one", "tag").await;
    b.started().await.end.send(Ending::Ok(5)).ok();
    assert_eq!(b.woken().await, "one");
    assert_eq!(b.resolve("one", "tag").await, State::Ready(Arc::new(5)));
    b.nothing_started().await;
    b.release("one").await;
    assert!(matches!(b.resolve("one", "tag").await, State::Waiting(_)));
    b.started().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_wake_channel_does_not_keep_the_manager_from_answering() {
    let mut b = bench(3);
    for key in ["a", "b", "c"] {
        b.ensure(key, key, "x").await;
        b.started().await.end.send(Ending::Ok(1)).ok();
    }
    // The channel holds one; nobody reads. Questions are still answered.
    assert!(is_running(&b.ensure("d", "d", "x").await));
    let mut woken = [b.woken().await, b.woken().await, b.woken().await];
    woken.sort();
    assert_eq!(woken, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn shutdown_cancels_waits_for_the_bodies_and_refuses_newcomers() {
    let mut b = bench(1);
    b.ensure("one", "a", "x").await;
    let body = b.started().await;
    let manager = b.manager.clone();
    let down = tokio::spawn(async move { manager.shutdown().await });
    body.run.cancel.cancelled().await;
    assert!(!down.is_finished(), "the body has not ended yet");
    body.end.send(Ending::Err(Reason::Cancelled)).ok();
    down.await.unwrap();
    assert!(matches!(b.ensure("two", "b", "x").await, State::Failed(f) if f.message.contains("shutting down")));
}
