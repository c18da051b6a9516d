//! The one task that owns a machine.
//!
//! ```text
//!            Run(n), n > last run    exec             guest ready
//!  Absent ──┐  ┌───────────┐ ┌──────────┐ monitor   ┌─────────────────────┐ no space  ┌────────┐
//!           ├> │ Preparing │>│ Starting │ ────────> │ Running{ready: y/n} │ <───────> │ Paused │
//!  Stopped ─┘  └───────────┘ └──────────┘           └─────────────────────┘           └────────┘
//!     ^                        │ Stop/Delete            │        │ Stop/Delete
//!     │                        v                        │        v
//!     │       end of VMM  ┌──────────┐  <───────────────┼── (guest asked; one kill at the deadline)
//!     ├────────────────── │ Stopping │                  │
//!     │                   └──────────┘                  │ guest ended, panicked, VMM died, too slow
//!     ├─────────────────────────────────────────────────┘ (termination is recorded, then the VMM quits)
//!     │
//!     └── Delete ──> Deleting ──> Deleted (the task ends)
//!
//!  adoption: record or command line names a living VMM ──> Unmanageable until its monitor answers,
//!            then whichever state fits. A monitor that stops answering leads back there: neither
//!            started again nor thought dead. Stop and Delete work from there by the guest channel
//!            and by the kill.
//! ```
//!
//! Everything that happens is an [`Happening`]; the loop takes one, changes state, acts on the goal, and
//! publishes what is to be seen. Calls to the VMM have deadlines and hold up this machine only, and not
//! its stop: while one waits, a new goal is heard and a kill that falls due is sent. What blocks on the
//! disk (preparing a start, syncing a record, removing a directory) is done on other threads.

mod end;
mod monitor;
mod start;
mod stop;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use vmlet_init::channel::{Answer, Request};

use crate::channel::{self, ChannelError};
use crate::console::{ConsoleLog, ConsoleReader};
use crate::directory::MachineDir;
use crate::host::Host;
use crate::life::End;
use crate::machine::monitor::{Link, LinkEvent};
use crate::observation::{Observation, Phase, PortStatus, Timing};
use crate::prepare::Prepared;
use crate::process::{FoundVmm, Process};
use crate::qemu::argv::GUEST_ADDRESS;
use crate::record::{Found, Record, Stage};
use crate::spec::{Goal, MachineSpec, PortForward};

/// How long the guest may take to answer on its control port.
const ASK: Duration = Duration::from_secs(5);
/// How often the console is drained while there is output, and when there is none for long.
const DRAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(16));
/// How long after a failed deletion, or a full disk, the next attempt is made.
const RETRY: Duration = Duration::from_secs(5);
/// How long after a port was taken by somebody else it is tried again.
const PORT_RETRY: Duration = Duration::from_secs(10);

/// What is said of a VMM that was found and has not answered yet.
pub const ADOPTING: &str = "it is being adopted";

/// Questions from the handle that need the task.
pub enum Question {
    /// Drain the console now, and say where the log stands.
    Console(tokio::sync::oneshot::Sender<ConsoleReader>),
}

/// One machine, owned by its task.
pub struct Machine {
    host: Arc<Host>,
    uid: String,
    dir: MachineDir,
    record: Record,
    goal: watch::Receiver<Option<Goal>>,
    seen: watch::Sender<Observation>,
    questions: mpsc::Receiver<Question>,
    holds: watch::Receiver<usize>,
    answers: (mpsc::Sender<Said>, mpsc::Receiver<Said>),
    process: Option<Process>,
    link: Link,
    guest: Guest,
    ports: Ports,
    console: ConsoleLog,
    drain: Drain,
    /// A start before its VMM is executed.
    preparing: Option<Preparing>,
    deleted: bool,
    /// A start was killed because it took too long.
    too_slow: Option<End>,
    /// The one kill was sent by this agent.
    kill_sent: bool,
    /// The run is over and recorded; when the VMM is killed if it has not quit by itself.
    quit_by: Option<Instant>,
    /// A new goal was heard in the middle of something else and is still to be acted on.
    goal_heard: bool,
    /// The latest pause between two attempts to reach the monitor.
    last_pause: Duration,
    problem: Option<String>,
    retry_at: Option<Instant>,
}

/// What is known of the guest of this run, and not recorded.
#[derive(Debug, Default)]
struct Guest {
    ready: bool,
    paused: Option<String>,
    answer: Option<Answer>,
    /// A reset was seen since the guest was last ready.
    reset: bool,
    /// A question is under way.
    asking: bool,
    /// The request to shut down was followed.
    stopping: bool,
    /// The power button was pressed.
    powered: bool,
    ask_again_at: Option<Instant>,
    /// The keys of root that this boot was told, if that is known.
    keys: Option<Vec<String>>,
    /// Why the guest could not take them.
    keys_refused: Option<String>,
    /// The deadline of a boot inside a run that has been ready before.
    reboot_deadline: Option<Instant>,
    answered_vmm: bool,
    fresh: bool,
}

/// A start that is being prepared on another thread.
struct Preparing {
    run: u64,
    spec: Box<MachineSpec>,
    work: JoinHandle<Result<Prepared, String>>,
}

#[derive(Debug, Default)]
struct Ports {
    applied: Option<Vec<PortForward>>,
    status: Vec<PortStatus>,
}

#[derive(Debug)]
struct Drain {
    at: Option<Instant>,
    pause: Duration,
}

/// What the guest said to a question.
struct Said {
    request: Request,
    answer: Result<Answer, ChannelError>,
}

/// Everything that can happen to a machine.
enum Happening {
    VmmEnded,
    Prepared(Result<Prepared, String>),
    GoalChanged,
    AgentGone,
    Link(LinkEvent),
    Said(Box<Said>),
    Asked(Question),
    Time,
}

/// The ends of a machine's task that its handle holds.
pub struct Wires {
    /// What is wanted.
    pub goal: watch::Receiver<Option<Goal>>,
    /// What is seen.
    pub seen: watch::Sender<Observation>,
    /// What is asked.
    pub questions: mpsc::Receiver<Question>,
    /// How many hold VMMs back.
    pub holds: watch::Receiver<usize>,
}

impl Machine {
    /// The machine `uid` as it is found on this host: its record, and the living VMM whose command line
    /// names it, if there is one. Starts nothing and stops nothing.
    ///
    /// # Errors
    /// Its record cannot be read or set aside.
    pub fn find(host: Arc<Host>, uid: &str, vmm: Option<FoundVmm>, wires: Wires) -> io::Result<Machine> {
        let dir = MachineDir::new(&host.config.dir, uid);
        let mut problem = None;
        let record = match Record::read(dir.path(), uid)? {
            Found::Record(record) => *record,
            Found::None => Record::new(uid),
            Found::SetAside { path, why } => {
                let message = format!(
                    "its record could not be used and was set aside as {}: {why}",
                    path.display()
                );
                tracing::error!(uid, "{message}");
                problem = Some(message);
                Record::new(uid)
            }
        };
        let mut machine = Machine {
            console: ConsoleLog::new(dir.clone(), host.config.console_limit),
            dir,
            record,
            goal: wires.goal,
            seen: wires.seen,
            questions: wires.questions,
            holds: wires.holds,
            answers: mpsc::channel(4),
            process: None,
            link: Link::None,
            guest: Guest::default(),
            ports: Ports::default(),
            drain: Drain {
                at: None,
                pause: DRAIN.0,
            },
            preparing: None,
            deleted: false,
            too_slow: None,
            kill_sent: false,
            quit_by: None,
            goal_heard: false,
            last_pause: Duration::ZERO,
            problem,
            retry_at: None,
            host,
            uid: uid.to_owned(),
        };
        machine.find_process(vmm)?;
        machine.publish();
        Ok(machine)
    }

    /// The file name of the shared initrd that it last booted with.
    pub fn initrd(&self) -> Option<&str> {
        self.record.initrd.as_deref()
    }

    /// Runs the machine until it is deleted, or the agent is gone (then a VM runs on).
    pub async fn run(mut self) {
        loop {
            self.act().await;
            self.publish();
            if self.deleted {
                return;
            }
            if std::mem::take(&mut self.goal_heard) {
                continue;
            }
            match self.next().await {
                Happening::AgentGone => return,
                Happening::GoalChanged => {}
                Happening::Prepared(result) => self.prepared(result).await,
                Happening::VmmEnded => self.vmm_ended().await,
                Happening::Link(event) => self.on_link(event).await,
                Happening::Said(said) => self.on_said(*said).await,
                Happening::Asked(question) => self.on_question(question).await,
                Happening::Time => self.on_time().await,
            }
        }
    }

    async fn next(&mut self) -> Happening {
        let deadline = self.next_deadline();
        let process = self.process.as_ref();
        let preparing = self.preparing.as_mut();
        tokio::select! {
            // The end of the VMM first: nothing else matters then. Then what people want, and what is due,
            // so that a chatty VMM can hold up neither.
            biased;
            () = ended(process) => Happening::VmmEnded,
            changed = self.goal.changed() => match changed {
                Ok(()) => Happening::GoalChanged,
                Err(_) => Happening::AgentGone,
            },
            Some(question) = self.questions.recv() => Happening::Asked(question),
            Some(said) = self.answers.1.recv() => Happening::Said(Box::new(said)),
            result = work_of(preparing) => Happening::Prepared(result),
            () = time(deadline) => Happening::Time,
            event = self.link.event() => Happening::Link(event),
        }
    }

    /// Does what the goal asks for in the present state.
    async fn act(&mut self) {
        let goal = self.goal.borrow_and_update().clone();
        self.heed(goal.as_ref());
        // A stop that was begun goes on, whatever is wanted by now and whoever began it.
        self.advance_stop();
        let prepares = self.record.stage == Stage::Launching;
        match goal {
            None => {}
            Some(Goal::Run { spec, .. }) if self.process.is_some() => self.apply_live(&spec).await,
            Some(Goal::Run { run, spec }) if run > self.record.run && !prepares && self.preparing.is_none() => {
                self.begin_start(run, spec);
            }
            Some(Goal::Run { .. }) => {}
            Some(Goal::Stop { .. } | Goal::Delete { .. }) if prepares => self.abandon_start().await,
            Some(Goal::Stop { .. }) => {}
            Some(Goal::Delete { .. }) => {
                let due = self.retry_at.is_none_or(|at| at <= Instant::now());
                if self.process.is_none() && self.preparing.is_none() && due {
                    self.delete().await;
                }
            }
        }
    }

    /// Begins the stop that a goal asks for. Never waits: it is done in the middle of calls too.
    fn heed(&mut self, goal: Option<&Goal>) {
        match goal {
            Some(Goal::Stop { grace }) => self.begin_stop(*grace, false),
            Some(Goal::Delete { grace }) => self.begin_stop(*grace, true),
            Some(Goal::Run { .. }) | None => {}
        }
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        if self.quit_by.is_some_and(|at| at <= now) {
            self.quit_by = None;
            self.kill("it did not quit after its guest had ended");
        }
        self.terminate_when_due();
        if self.drain.at.is_some_and(|at| at <= now) {
            self.drain_console().await;
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.retry().await;
        }
        if self.guest.ask_again_at.is_some_and(|at| at <= now) {
            self.guest.ask_again_at = None;
            self.greet();
        }
        self.check_boot_deadline().await;
    }

    fn next_deadline(&self) -> Option<Instant> {
        [
            self.drain.at,
            self.retry_at,
            self.guest.ask_again_at,
            self.boot_deadline(),
            self.kill_at(),
            self.terminate_at(),
            self.quit_by,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    async fn on_question(&mut self, question: Question) {
        match question {
            Question::Console(reply) => {
                self.drain_console().await;
                let _ = reply.send(self.console.reader());
            }
        }
    }

    /// Asks the guest in a task of its own: the guest may take its time.
    fn ask(&mut self, request: Request) {
        if std::mem::replace(&mut self.guest.asking, true) {
            return;
        }
        let (dir, reply) = (self.dir.clone(), self.answers.0.clone());
        tokio::spawn(async move {
            let answer = channel::ask(&dir, &request, ASK).await;
            let _ = reply.send(Said { request, answer }).await;
        });
    }

    fn phase(&self) -> Phase {
        if self.deleted {
            return Phase::Deleted;
        }
        let deleting = matches!(*self.goal.borrow(), Some(Goal::Delete { .. }));
        if self.process.is_none() {
            return match deleting {
                true => Phase::Deleting,
                false if self.record.stage == Stage::Launching => Phase::Preparing,
                false if self.dir.exists() => Phase::Stopped,
                false => Phase::Absent,
            };
        }
        if self.run_is_over() {
            return if deleting { Phase::Deleting } else { Phase::Stopping };
        }
        if let Some(message) = self.link.trouble() {
            return Phase::Unmanageable { message };
        }
        if deleting {
            Phase::Deleting
        } else if self.record.stop.is_some() {
            Phase::Stopping
        } else if let Some(reason) = &self.guest.paused {
            Phase::Paused { reason: reason.clone() }
        } else if self.record.ready_at.is_none() || self.record.guest_boot_id.is_none() {
            // Ready is only said together with who is: the boot id tells one boot from the next.
            Phase::Starting
        } else {
            Phase::Running {
                guest_ready: self.guest.ready,
            }
        }
    }

    /// Publishes what is to be seen, and wakes the agent if it differs.
    fn publish(&mut self) {
        let alive = self.process.is_some();
        let record = &self.record;
        let answer = self.guest.answer.as_ref();
        let now = Observation {
            run: record.run,
            phase: self.phase(),
            boot_id: record.guest_boot_id.clone(),
            reboots: record.reboots,
            started_at: record.started_at,
            ready_at: record.ready_at,
            termination: record.termination.clone(),
            vmm: record.vmm.clone().map(|mut vmm| {
                vmm.pid = self.process.as_ref().map(|p| p.id.pid);
                vmm
            }),
            ports: self.ports.status.clone(),
            addresses: if alive {
                vec![GUEST_ADDRESS.to_owned()]
            } else {
                Vec::new()
            },
            disk: record.disk.clone(),
            init: answer.map(|a| a.init),
            guest_warnings: answer.map(|a| a.warnings.clone()).unwrap_or_default(),
            keys_refused: self.guest.keys_refused.clone(),
            timings: record.timings.clone(),
            problem: self.problem.clone(),
        };
        let changed = self.seen.send_if_modified(|seen| {
            let differs = *seen != now;
            if differs {
                *seen = now;
            }
            differs
        });
        if changed {
            self.host.notifier.changed(&self.uid);
        }
    }

    fn note(&mut self, step: &str) {
        self.record.timings.push(Timing {
            step: step.to_owned(),
            at: SystemTime::now(),
        });
    }

    /// Whether the end of the present run is recorded already.
    fn run_is_over(&self) -> bool {
        let ended = self.record.termination.as_ref();
        ended.is_some_and(|termination| termination.run == self.record.run)
    }

    /// Writes the record, so that it outlives the agent. A failure is told and stops nothing: a VM is
    /// never ended by bookkeeping.
    fn write_record(&mut self) {
        let written = self.record.write(self.dir.path(), false);
        let _ = self.told(written);
    }

    /// Writes the record, so that it outlives a power cut too.
    async fn sync_record(&mut self) -> io::Result<()> {
        let (record, dir) = (self.record.clone(), self.dir.clone());
        let written = tokio::task::spawn_blocking(move || record.write(dir.path(), true)).await;
        self.told(written.unwrap_or_else(|error| Err(io::Error::other(error))))
    }

    fn told(&mut self, written: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &written {
            let message = format!("its record could not be written: {error}");
            tracing::error!(uid = self.uid, "{message}");
            self.problem = Some(message);
        }
        written
    }
}

/// The end of a VMM; never, where there is none.
async fn ended(process: Option<&Process>) {
    match process {
        Some(process) => process.exited().await,
        None => std::future::pending().await,
    }
}

async fn work_of(preparing: Option<&mut Preparing>) -> Result<Prepared, String> {
    match preparing {
        Some(preparing) => (&mut preparing.work)
            .await
            .unwrap_or_else(|error| Err(format!("preparing it failed: {error}"))),
        None => std::future::pending().await,
    }
}

async fn time(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The moment of the monotonic clock that is nearest to a time of day.
fn instant_of(at: SystemTime) -> Instant {
    let now = Instant::now();
    match at.duration_since(SystemTime::now()) {
        Ok(ahead) => now + ahead.min(Duration::from_secs(365 * 86400)),
        Err(_) => now,
    }
}
