//! The one task that owns all pull state, and the handle to it.
//!
//! The task never waits for a body, a disk or a network: it feeds the [`core`](super::core),
//! carries out its effects and answers. Every body runs in a task of its own that belongs to the
//! run, never in a caller's future, so that a caller's going away harms nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::JoinMap;

use super::core::{Asker, Core, Effect, Input, Key, Offer, RunId, Slot, Slots, View};
use super::work::Progress;
use crate::error::{PullError, Reason};
use crate::types::{Failure, Interest, Phase, State, Waiting};

/// How many requests may wait for the owner task. Callers beyond wait a moment: the task answers in microseconds.
const REQUESTS: usize = 256;

/// What a body gets beside its job.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Fires when nobody wants the result any more. The body must end soon, with all its threads.
    pub cancel: CancellationToken,
    /// Where it says how far it is.
    pub progress: Progress,
}

/// Does one run. A panic inside counts as that run's failure and harms no other key.
pub type Body<J, V> = Arc<dyn Fn(J, Run) -> BoxFuture<'static, Result<Arc<V>, PullError>> + Send + Sync>;

enum Request<J, V> {
    Ensure {
        asker: Asker,
        key: Key,
        offer: Offer<J>,
        answer: oneshot::Sender<State<V>>,
    },
    Release {
        interest: Interest,
        slot: Option<Slot>,
        answer: oneshot::Sender<()>,
    },
    Shutdown {
        answer: oneshot::Sender<()>,
    },
}

/// Handle to the owner task. When the last clone is dropped, all runs are cancelled.
pub struct Manager<J, V> {
    requests: mpsc::Sender<Request<J, V>>,
}

impl<J, V> Clone for Manager<J, V> {
    fn clone(&self) -> Self {
        Manager {
            requests: self.requests.clone(),
        }
    }
}

impl<J, V> Manager<J, V>
where
    J: Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// Starts the owner task on the current tokio runtime. `seed` feeds the jitter of back-offs.
    pub fn start(slots: Slots, seed: u64, body: Body<J, V>, wake: mpsc::Sender<Interest>) -> Manager<J, V> {
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let owner = Owner {
            core: Core::new(slots, seed),
            body,
            start: Instant::now(),
            bodies: JoinMap::new(),
            running: BTreeMap::new(),
            alarm: None,
            walls: BTreeMap::new(),
            wake: Some(wake),
            to_wake: BTreeSet::new(),
            closing: Vec::new(),
        };
        tokio::spawn(owner.run(inbox));
        Manager { requests }
    }

    /// Says how far `key` is, and makes somebody work on it if nobody does. Never waits for that work.
    pub async fn ensure(&self, asker: Asker, key: Key, offer: Offer<J>) -> State<V> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Ensure {
            asker,
            key,
            offer,
            answer,
        };
        if self.requests.send(request).await.is_ok()
            && let Ok(state) = answered.await
        {
            return state;
        }
        State::Failed(Failure {
            reason: Reason::Cancelled.as_str().to_string(),
            message: "vmlet is shutting down".to_string(),
            terminal: false,
            retry_at: SystemTime::now() + super::core::FIRST_PAUSE,
        })
    }

    /// The interest wants nothing any more (in one slot, or at all). What nobody else wants is cancelled.
    pub async fn release(&self, interest: Interest, slot: Option<Slot>) {
        let (answer, answered) = oneshot::channel();
        if self
            .requests
            .send(Request::Release { interest, slot, answer })
            .await
            .is_ok()
        {
            let _ = answered.await;
        }
    }

    /// Cancels everything and returns when every run has ended.
    pub async fn shutdown(&self) {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(Request::Shutdown { answer }).await.is_ok() {
            let _ = answered.await;
        }
    }
}

struct Owner<J, V> {
    core: Core<J, Arc<V>>,
    body: Body<J, V>,
    start: Instant,
    bodies: JoinMap<RunId, Result<Arc<V>, PullError>>,
    running: BTreeMap<RunId, Run>,
    alarm: Option<Duration>,
    /// What was said of times to come, so that whoever asks again hears the same.
    walls: BTreeMap<Duration, SystemTime>,
    /// `None` once the receiver is gone.
    wake: Option<mpsc::Sender<Interest>>,
    /// Not sent yet. A set: waking twice says nothing more than waking once.
    to_wake: BTreeSet<Interest>,
    closing: Vec<oneshot::Sender<()>>,
}

impl<J, V> Owner<J, V>
where
    J: Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    async fn run(mut self, mut inbox: mpsc::Receiver<Request<J, V>>) {
        let mut open = true;
        while open || !self.core.is_idle() {
            let alarm = self.alarm.map(|at| self.start + at);
            // In this order: ends of runs free slots; the alarm is late already; a wake-up never blocks
            // the loop, because its receiver may be waiting for an answer from here; requests come last,
            // for all of the above is finite.
            tokio::select! {
                biased;
                Some((run, joined)) = self.bodies.join_next(), if !self.bodies.is_empty() => {
                    let result = joined.unwrap_or_else(|error| {
                        tracing::error!(?run, %error, "a pull's task panicked");
                        Err(PullError::new(Reason::Internal, "the pull panicked; please report this with the log"))
                    });
                    self.running.remove(&run);
                    self.input(Input::Done { run, result });
                }
                () = async { sleep_until(alarm.unwrap_or(self.start)).await }, if alarm.is_some() => {
                    self.alarm = None;
                    self.input(Input::Timer);
                }
                permit = reserve(self.wake.clone()), if !self.to_wake.is_empty() && self.wake.is_some() => {
                    match permit {
                        Some(permit) => {
                            if let Some(interest) = self.to_wake.pop_first() {
                                permit.send(interest);
                            }
                        }
                        None => self.wake = None,
                    }
                }
                request = inbox.recv(), if open => match request {
                    Some(request) => self.request(request),
                    None => {
                        open = false;
                        self.input(Input::Shutdown);
                    }
                },
            }
            if self.core.is_idle() {
                for answer in self.closing.drain(..) {
                    let _ = answer.send(());
                }
            }
        }
    }

    fn request(&mut self, request: Request<J, V>) {
        match request {
            Request::Ensure {
                asker,
                key,
                offer,
                answer,
            } => {
                self.input(Input::Ensure {
                    asker: asker.clone(),
                    key,
                    offer,
                });
                // Without a view the core is closed; the dropped answer says so.
                if let Some(view) = self.core.view(&asker) {
                    let _ = answer.send(self.state(view));
                }
            }
            Request::Release { interest, slot, answer } => {
                if slot.is_none() {
                    self.to_wake.remove(&interest);
                }
                self.input(Input::Release { interest, slot });
                let _ = answer.send(());
            }
            Request::Shutdown { answer } => {
                self.input(Input::Shutdown);
                self.closing.push(answer);
            }
        }
    }

    fn input(&mut self, input: Input<J, Arc<V>>) {
        for effect in self.core.handle(self.start.elapsed(), input) {
            match effect {
                Effect::Start { run, job, .. } => {
                    let context = Run::default();
                    self.running.insert(run, context.clone());
                    let body = self.body.clone();
                    // Inside the task: what panics before the body's first await is its own failure too.
                    self.bodies.spawn(run, async move { body(job, context).await });
                }
                Effect::Cancel { run } => {
                    if let Some(context) = self.running.get(&run) {
                        context.cancel.cancel();
                    }
                }
                Effect::Arm { at } => self.alarm = at,
                Effect::Wake { interest } => {
                    self.to_wake.insert(interest);
                }
            }
        }
    }

    fn state(&mut self, view: View<Arc<V>>) -> State<V> {
        match view {
            View::Ready(value) => State::Ready(value),
            View::Queued { position, before } => State::Waiting(Waiting {
                phase: Phase::Queued { position },
                done_bytes: 0,
                total_bytes: 0,
                message: match before {
                    Some(error) => {
                        format!("waiting for a free slot ({position} before it) to try again after: {error}")
                    }
                    None => format!("waiting for a free slot ({position} before it)"),
                },
            }),
            View::Running { run, before } => {
                let progress = self.running.get(&run).map(|r| r.progress.clone()).unwrap_or_default();
                let (done_bytes, total_bytes) = progress.bytes();
                let stage = progress.stage();
                let what = if stage.is_empty() { "starting" } else { &stage };
                let message = match before {
                    Some(error) => format!("{what} (again, after: {error})"),
                    None => what.to_string(),
                };
                State::Waiting(Waiting {
                    phase: Phase::Running,
                    done_bytes,
                    total_bytes,
                    message,
                })
            }
            View::Paused { until, error: None } => State::Waiting(Waiting {
                phase: Phase::BackingOff {
                    until: self.wall(until),
                },
                done_bytes: 0,
                total_bytes: 0,
                message: "the registry asked for a pause".to_string(),
            }),
            View::Paused {
                until,
                error: Some(error),
            } => State::Failed(Failure {
                reason: error.reason.as_str().to_string(),
                terminal: error.is_terminal(),
                message: error.message,
                retry_at: self.wall(until),
            }),
        }
    }

    /// The wall-clock time of a time of the core, for people; decisions use the monotonic one.
    fn wall(&mut self, at: Duration) -> SystemTime {
        let now = self.start.elapsed();
        self.walls.retain(|at, _| *at >= now);
        let told = self.walls.entry(at);
        *told.or_insert_with(|| SystemTime::now() + at.saturating_sub(now))
    }
}

async fn reserve(wake: Option<mpsc::Sender<Interest>>) -> Option<mpsc::OwnedPermit<Interest>> {
    wake?.reserve_owned().await.ok()
}
