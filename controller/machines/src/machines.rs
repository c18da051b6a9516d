//! The handle: all machines of this host.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};

use crate::console::ConsoleChunk;
use crate::directory::{MachineDir, is_uid};
use crate::host::{Config, Host, INITRDS};
use crate::machine::{Machine, Question, Wires};
use crate::observation::{Milestone, Observation, Phase, Termination, TerminationReason};
use crate::probe::HostFacts;
use crate::process::{FoundVmm, find_vmms, has_open_below};
use crate::spec::Goal;

/// How long opening waits for VMMs that do not answer. They are adopted all the same.
const ADOPTION: Duration = Duration::from_secs(2);

/// Why machines cannot be managed here.
#[derive(Debug, thiserror::Error)]
#[error("machines in {path}: {source}")]
pub struct OpenError {
    /// Which directory.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// All machines of this host. Cheap to clone; when the last one is dropped the tasks end, and every VM
/// runs on.
#[derive(Clone)]
pub struct Machines {
    inner: Arc<Inner>,
}

struct Inner {
    host: Arc<Host>,
    handles: Mutex<HashMap<String, Handle>>,
    /// How many hold VMMs back.
    holds: Holds,
}

struct Handle {
    goal: watch::Sender<Option<Goal>>,
    seen: watch::Receiver<Observation>,
    questions: mpsc::Sender<Question>,
}

type Holds = Arc<watch::Sender<usize>>;

/// Holds VMMs back while it lives.
#[must_use]
pub struct Hold(Holds);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Machines {
    /// Looks at everything below `config.dir` and adopts what runs, all at once. The caller holds the lock
    /// on the data directory: two of these on one directory would fight.
    ///
    /// `wake` gets the uid of each machine whose observation changed.
    ///
    /// # Errors
    /// The directory cannot be made or read. What is wrong with one machine is that machine's observation.
    pub async fn open(config: Config, wake: mpsc::Sender<String>) -> Result<Machines, OpenError> {
        let path = config.dir.clone();
        let failed = |source| OpenError {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(&path).map_err(failed)?;
        let host = tokio::task::spawn_blocking({
            let runtime = tokio::runtime::Handle::current();
            move || {
                let _guard = runtime.enter();
                Host::probe(config, wake)
            }
        })
        .await
        .map_err(|error| failed(io::Error::other(error)))?
        .map_err(failed)?;
        let machines = Machines {
            inner: Arc::new(Inner {
                host: Arc::new(host),
                handles: Mutex::default(),
                holds: Arc::default(),
            }),
        };
        machines.adopt_all().await.map_err(failed)?;
        Ok(machines)
    }

    async fn adopt_all(&self) -> io::Result<()> {
        let host = &self.inner.host;
        let begun = Instant::now();
        let looking = Arc::clone(host);
        let found = tokio::task::spawn_blocking(move || find_all(&looking)).await;
        let found = found.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        // Each looks at its own on a thread of its own: one that is slow to read holds up no other.
        let looks = found.into_iter().map(|(uid, vmm)| async move {
            let (handle, wires) = connect(self.inner.holds.subscribe());
            let looking = Arc::clone(host);
            let named = uid.clone();
            let machine = tokio::task::spawn_blocking(move || Machine::find(looking, &named, vmm, wires)).await;
            (
                uid,
                handle,
                machine.unwrap_or_else(|error| Err(io::Error::other(error))),
            )
        });
        let mut used = BTreeSet::new();
        let mut adopted = Vec::new();
        for (uid, handle, machine) in futures::future::join_all(looks).await {
            if let Ok(machine) = &machine {
                used.extend(machine.initrd().map(str::to_owned));
            }
            adopted.push(handle.seen.clone());
            self.begin(&mut self.handles(), &uid, handle, machine);
        }
        let cache = host.config.dir.join(INITRDS);
        let swept = tokio::task::spawn_blocking(move || crate::initrd::sweep(&cache, &used)).await;
        if let Err(error) = swept.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::warn!(%error, "the cache of initrds was not swept");
        }
        // What their monitors say belongs to the first observation; a VMM that hangs holds nobody up.
        let settled = futures::future::join_all(adopted.iter_mut().map(|seen| async move {
            let _ = seen.wait_for(|seen| !is_adopting(seen)).await;
        }));
        let _ = tokio::time::timeout(ADOPTION, settled).await;
        let runs =
            |seen: &watch::Receiver<Observation>| seen.borrow().vmm.as_ref().is_some_and(|vmm| vmm.pid.is_some());
        let count = adopted.iter().filter(|seen| runs(seen)).count();
        let took_us = begun.elapsed().as_micros();
        tracing::info!(count, took_us, "machines are adopted");
        Ok(())
    }

    /// Says what is wanted of a machine. Never waits, and may be said again and again.
    ///
    /// A uid that is not a UUID in lower case is refused: [`Machines::observe`] says so.
    pub fn apply(&self, uid: &str, goal: Goal) {
        let mut handles = self.handles();
        // What could not be read may be readable by now.
        let known = handles
            .get(uid)
            .is_some_and(|h| h.lives() && h.seen.borrow().phase != Phase::Deleted);
        if !known {
            if !is_uid(uid) {
                handles.insert(uid.to_owned(), refused(uid));
                return;
            }
            let (handle, wires) = connect(self.inner.holds.subscribe());
            let machine = Machine::find(Arc::clone(&self.inner.host), uid, None, wires);
            self.begin(&mut handles, uid, handle, machine);
        }
        if let Some(handle) = handles.get(uid) {
            handle.goal.send_if_modified(|present| {
                let differs = present.as_ref() != Some(&goal);
                if differs {
                    tracing::debug!(uid, goal = goal.name(), "goal");
                    *present = Some(goal);
                }
                differs
            });
        }
    }

    /// The latest state of a machine; None: it was never heard of here.
    pub fn observe(&self, uid: &str) -> Option<Observation> {
        Some(self.handles().get(uid)?.seen.borrow().clone())
    }

    /// Keeps VMMs from being executed until what is returned is dropped, each for [`Config::longest_hold`] at most: of
    /// many that waited for one image all hear of their disks before the first guests take every processor.
    pub fn hold(&self) -> Hold {
        let holds = Arc::clone(&self.inner.holds);
        holds.send_modify(|count| *count += 1);
        Hold(holds)
    }

    /// Waits until run `run` has come to `milestone` or has ended, at most `patience`: who then looks sees more than
    /// that it is being prepared.
    pub async fn reached(&self, uid: &str, run: u64, milestone: Milestone, patience: Duration) {
        let Some(mut seen) = self.handles().get(uid).map(|handle| handle.seen.clone()) else {
            return;
        };
        let reached = seen.wait_for(|seen| seen.has_come_to(milestone, run));
        // Later is told later, and so is a machine that is gone.
        let _ = tokio::time::timeout(patience, reached).await;
    }

    /// The uids of all machines that have anything on this host, in order.
    pub fn list(&self) -> Vec<String> {
        let mut uids: Vec<String> = self
            .handles()
            .iter()
            .filter(|(_, handle)| handle.seen.borrow().phase != Phase::Deleted)
            .map(|(uid, _)| uid.clone())
            .collect();
        uids.sort_unstable();
        uids
    }

    /// Drops the memory of a machine that was deleted. Of another one nothing is dropped.
    pub fn forget(&self, uid: &str) {
        let mut handles = self.handles();
        if handles
            .get(uid)
            .is_some_and(|h| h.seen.borrow().phase == Phase::Deleted)
        {
            handles.remove(uid);
        }
    }

    /// What a machine printed on its console from `offset` on (0: from the oldest that is kept). Follow it
    /// by asking again from `next`. Offsets are of this agent's life: a new one begins anew.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn console(&self, uid: &str, offset: u64) -> io::Result<Option<ConsoleChunk>> {
        let Some(questions) = self.handles().get(uid).map(|h| h.questions.clone()) else {
            return Ok(None);
        };
        let (reply, answer) = oneshot::channel();
        if questions.send(Question::Console(reply)).await.is_err() {
            return Ok(None);
        }
        let Ok(reader) = answer.await else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || reader.read(offset)).await;
        read.map_err(io::Error::other)?.map(Some)
    }

    /// What was found on this host when this was opened.
    pub fn facts(&self) -> &HostFacts {
        &self.inner.host.facts
    }

    fn begin(&self, handles: &mut HashMap<String, Handle>, uid: &str, handle: Handle, machine: io::Result<Machine>) {
        match machine {
            Ok(machine) => {
                tokio::spawn(machine.run());
                handles.insert(uid.to_owned(), handle);
            }
            Err(error) => {
                tracing::error!(uid, %error, "cannot be managed");
                handles.insert(uid.to_owned(), unusable(&error));
            }
        }
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        self.inner.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// Whether a task stands behind it.
    fn lives(&self) -> bool {
        self.goal.receiver_count() > 0
    }
}

fn connect(holds: watch::Receiver<usize>) -> (Handle, Wires) {
    let (goal, goals) = watch::channel(None);
    let (seen, observations) = watch::channel(Observation::default());
    let (questions, asked) = mpsc::channel(4);
    let wires = Wires {
        goal: goals,
        seen,
        questions: asked,
        holds,
    };
    let handle = Handle {
        goal,
        seen: observations,
        questions,
    };
    (handle, wires)
}

/// Everything that has a directory here or a living VMM that was started from here. Blocks.
fn find_all(host: &Host) -> io::Result<Vec<(String, Option<FoundVmm>)>> {
    let mut vmms = find_vmms(&host.boot_id, |user| host.is_ours(user))?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&host.config.dir)? {
        let name = entry?.file_name();
        if let Some(uid) = name.to_str().filter(|name| is_uid(name)) {
            found.push((uid.to_owned(), vmms.remove(uid)));
        }
    }
    // A directory can be lost under a living VMM. Other agents' VMMs are none of ours.
    let dir = std::fs::canonicalize(&host.config.dir)?;
    vmms.retain(|uid, vmm| is_uid(uid) && has_open_below(vmm.id.pid, &dir.join(uid)));
    found.extend(vmms.into_iter().map(|(uid, vmm)| (uid, Some(vmm))));
    Ok(found)
}

fn is_adopting(seen: &Observation) -> bool {
    matches!(&seen.phase, Phase::Unmanageable { message } if message == crate::machine::ADOPTING)
}

/// A handle behind which there is no task: only something to observe.
fn inert(seen: Observation) -> Handle {
    Handle {
        goal: watch::channel(None).0,
        seen: watch::channel(seen).1,
        questions: mpsc::channel(1).0,
    }
}

fn refused(uid: &str) -> Handle {
    inert(Observation {
        termination: Some(Termination {
            run: 0,
            reason: TerminationReason::StartFailed,
            exit_code: None,
            message: format!("{uid:?} is not a UUID: a machine's uid names its directory and its process"),
            finished_at: SystemTime::now(),
        }),
        ..Observation::default()
    })
}

fn unusable(error: &io::Error) -> Handle {
    inert(Observation {
        phase: Phase::Unmanageable {
            message: format!("what is kept of it cannot be read: {error}"),
        },
        ..Observation::default()
    })
}

/// The files of a machine's console log below a directory of machines.
#[derive(Clone, Debug)]
pub struct ConsoleFiles {
    /// Of the latest run, newest first. They are rotated by renaming.
    pub latest: [PathBuf; 2],
    /// Of the run before, newest first.
    pub previous: [PathBuf; 2],
}

/// Where a machine's console log lies, for a process that is not their agent. None: this is no uid.
pub fn console_files(machines: &std::path::Path, uid: &str) -> Option<ConsoleFiles> {
    use crate::console::{LOG, OLDER, PREVIOUS_LOG, PREVIOUS_OLDER};
    let dir = is_uid(uid).then(|| MachineDir::new(machines, uid))?;
    Some(ConsoleFiles {
        latest: [LOG, OLDER].map(|name| dir.file(name)),
        previous: [PREVIOUS_LOG, PREVIOUS_OLDER].map(|name| dir.file(name)),
    })
}
