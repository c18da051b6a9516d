//! The virtual machines of one namespace as a watch shows them, with their history.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use vmlet_crds::VirtualMachine;

use crate::vm;

type State = BTreeMap<String, VirtualMachine>;

/// What the watch has seen.
pub struct Watched {
    now: watch::Receiver<State>,
    /// Every state of every machine, in words.
    history: Arc<Mutex<Vec<Entry>>>,
    _task: AbortOnDropHandle<()>,
}

/// A state that a machine was in.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which machine.
    pub name: String,
    /// When, counted from the start of the watch.
    pub at: Duration,
    /// The object.
    pub vm: VirtualMachine,
}

impl Watched {
    /// Watches a namespace and notes every change in `file`.
    pub fn start(client: Client, namespace: &str, file: &Path) -> Result<Watched> {
        let mut file = File::create(file)?;
        let api: Api<VirtualMachine> = Api::namespaced(client, namespace);
        let (state, now) = watch::channel(State::new());
        let history = Arc::new(Mutex::new(Vec::new()));
        let notes = history.clone();
        let start = Instant::now();
        let task = tokio::spawn(async move {
            let mut events = watcher(api, watcher::Config::default()).boxed();
            let mut fresh = State::new();
            while let Some(event) = events.next().await {
                let mut note = |vm: &VirtualMachine, what: &str| {
                    let at = start.elapsed();
                    // The history is for people; a full disk fails the scenario elsewhere.
                    let _ = writeln!(file, "{:7.2} {what}{}", at.as_secs_f64(), vm::words(vm));
                    let entry = Entry {
                        name: vm.name_any(),
                        at,
                        vm: vm.clone(),
                    };
                    notes.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
                };
                match event {
                    Ok(Event::Init) => fresh.clear(),
                    Ok(Event::InitApply(vm)) => {
                        note(&vm, "");
                        fresh.insert(vm.name_any(), vm);
                    }
                    Ok(Event::InitDone) => {
                        state.send_replace(std::mem::take(&mut fresh));
                    }
                    Ok(Event::Apply(vm)) => {
                        note(&vm, "");
                        state.send_modify(|all| {
                            all.insert(vm.name_any(), vm);
                        });
                    }
                    Ok(Event::Delete(vm)) => {
                        note(&vm, "deleted ");
                        state.send_modify(|all| {
                            all.remove(&vm.name_any());
                        });
                    }
                    // The watcher begins again by itself.
                    Err(error) => {
                        let _ = writeln!(file, "{:7.2} watch: {error}", start.elapsed().as_secs_f64());
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        });
        Ok(Watched {
            now,
            history,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Waits until `judge` says yes of the machine (None: it is not there). An error of `judge` ends the wait:
    /// what is waited for cannot come any more.
    pub async fn until<T>(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        mut judge: impl FnMut(Option<&VirtualMachine>) -> Result<Option<T>>,
    ) -> Result<T> {
        let mut now = self.now.clone();
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            {
                let state = now.borrow_and_update();
                let vm = state.get(name);
                if let Some(done) = judge(vm).with_context(|| format!("{name}: waiting for: {what}"))? {
                    return Ok(done);
                }
            }
            match tokio::time::timeout_at(deadline, now.changed()).await {
                Ok(changed) => changed.context("the watch has ended")?,
                Err(_) => {
                    let state = now.borrow();
                    let last = state.get(name).map_or("it is not there".to_owned(), vm::words);
                    bail!("{name}: not within {limit:?}: {what}; last seen: {last}");
                }
            }
        }
    }

    /// All that was seen so far, oldest first.
    pub fn history(&self) -> Vec<Entry> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
