//! The handle: all machines of this host.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};

use crate::console::ConsoleChunk;
use crate::directory::{MachineDir, is_uid};
use crate::host::{Config, Host};
use crate::machine::{Machine, Question, Wires};
use crate::observation::{Observation, Phase, Termination, TerminationReason};
use crate::probe::HostFacts;
use crate::process::{FoundVmm, find_vmms};
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
}

struct Handle {
    goal: watch::Sender<Option<Goal>>,
    seen: watch::Receiver<Observation>,
    questions: mpsc::Sender<Question>,
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
            }),
        };
        machines.adopt_all().await.map_err(failed)?;
        Ok(machines)
    }

    async fn adopt_all(&self) -> io::Result<()> {
        let host = &self.inner.host;
        let mut vmms = find_vmms(&host.boot_id, |user| host.is_ours(user))?;
        let mut adopted = Vec::new();
        for entry in std::fs::read_dir(&host.config.dir)? {
            let name = entry?.file_name();
            let Some(uid) = name.to_str().filter(|name| is_uid(name)) else {
                continue;
            };
            let vmm = vmms.remove(uid);
            adopted.push(self.spawn(&mut self.handles(), uid, vmm));
        }
        // What their monitors say belongs to the first observation; a VMM that hangs holds nobody up.
        let settled = futures::future::join_all(adopted.into_iter().map(|mut seen| async move {
            let _ = seen.wait_for(|seen| !is_adopting(seen)).await;
        }));
        let _ = tokio::time::timeout(ADOPTION, settled).await;
        Ok(())
    }

    /// Says what is wanted of a machine. Never waits, and may be said again and again.
    ///
    /// A uid that is not a UUID in lower case is refused: [`Machines::observe`] says so.
    pub fn apply(&self, uid: &str, goal: Goal) {
        let mut handles = self.handles();
        let known = handles
            .get(uid)
            .is_some_and(|h| h.seen.borrow().phase != Phase::Deleted);
        if !known {
            if !is_uid(uid) {
                handles.insert(uid.to_owned(), refused(uid));
                return;
            }
            self.spawn(&mut handles, uid, None);
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

    /// The files of a machine's console log, newest first. They are rotated by renaming.
    pub fn console_files(&self, uid: &str) -> Option<[PathBuf; 2]> {
        console_files(&self.inner.host.config.dir, uid)
    }

    /// What was found on this host when this was opened.
    pub fn facts(&self) -> &HostFacts {
        &self.inner.host.facts
    }

    fn spawn(
        &self,
        handles: &mut HashMap<String, Handle>,
        uid: &str,
        vmm: Option<FoundVmm>,
    ) -> watch::Receiver<Observation> {
        let (goal, goals) = watch::channel(None);
        let (seen, observations) = watch::channel(Observation::default());
        let (questions, asked) = mpsc::channel(4);
        let wires = Wires {
            goal: goals,
            seen,
            questions: asked,
        };
        let handle = Handle {
            goal,
            seen: observations.clone(),
            questions,
        };
        match Machine::find(Arc::clone(&self.inner.host), uid, vmm, wires) {
            Ok(machine) => {
                tokio::spawn(machine.run());
                handles.insert(uid.to_owned(), handle);
            }
            Err(error) => {
                tracing::error!(uid, %error, "cannot be managed");
                handles.insert(uid.to_owned(), unusable(&error));
            }
        }
        observations
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        self.inner.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

/// The files of a machine's console log below a directory of machines, newest first, for a process that is
/// not their agent. None: this is no uid.
pub fn console_files(machines: &std::path::Path, uid: &str) -> Option<[PathBuf; 2]> {
    if !is_uid(uid) {
        return None;
    }
    let dir = MachineDir::new(machines, uid);
    Some([dir.file(crate::console::LOG), dir.file(crate::console::PREVIOUS)])
}
