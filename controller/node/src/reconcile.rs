//! One visit to one VM: read, decide, ask, write status, return. Nothing here waits for a pull, a
//! boot or a shutdown.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use vmlet_crds::{FINALIZER, VirtualMachine, VirtualMachineStatus, is_another_object, status_patch};
use vmlet_machines::{Goal, Machines, Milestone, Observation, Phase};

use crate::agent::NodeCondition;
use crate::dereference::{Dereferencer, Part, Pinned, Reading, interest};
use crate::guest::{Parts, fingerprint, machine_spec};
use crate::life::{Cause, Decision, End, Life, Situation, decide, failures_after};
use crate::memory::{Memory, Records};
use crate::metrics::Metrics;
use crate::own_writes::OwnWrites;
use crate::status::{self, Sight, alive};
use crate::{events, hostkey};

/// Field manager of everything that the agent applies.
pub const FIELD_MANAGER: &str = "vmlet-agent";
/// The safety net behind the wake-ups.
const SAFETY_REQUEUE: Duration = Duration::from_secs(300);
/// How long a visit waits for the VMM that it asked for: mostly that is there by then, and one status tells it all.
const START: Duration = Duration::from_millis(200);
/// How often progress reaches the status.
const PROGRESS: Duration = Duration::from_secs(2);
/// How soon something that nobody wakes us for is looked at again.
const POLL: Duration = Duration::from_secs(10);

/// What every visit needs.
pub struct Context {
    /// The API.
    pub client: Client,
    /// Name of this node.
    pub node: String,
    /// Reads what VMs refer to.
    pub dereferencer: Dereferencer,
    /// The machines of this node.
    pub machines: Machines,
    /// The durable memory.
    pub records: Records,
    /// The rest of the memory, by uid.
    pub memories: Mutex<HashMap<String, Memory>>,
    /// What was written last of each VM.
    pub own_writes: OwnWrites,
    /// Names of the VMs by uid, for wake-ups.
    pub names: Mutex<HashMap<String, ObjectRef<VirtualMachine>>>,
    /// Who events are from.
    pub reporter: Reporter,
    /// This node's VMNode, once it has been written.
    pub node_object: Mutex<Option<ObjectReference>>,
    /// Whether the disk has space, once it was looked at.
    pub disk: Mutex<Option<NodeCondition>>,
    /// Failed visits in a row, by uid.
    pub failures: Mutex<HashMap<String, u32>>,
    /// Counts.
    pub metrics: Metrics,
}

/// Why a visit ended early. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused or did not answer.
    #[error("{}", vmlet_crds::in_words(.0))]
    Api(#[from] kube::Error),
    /// The agent's own record could not be written.
    #[error("record of the virtual machine: {0}")]
    Record(#[from] std::io::Error),
    /// What it had pinned could not be let go.
    #[error("{0}")]
    Artifacts(#[from] vmlet_artifacts::error::PullError),
    /// A bug: it must not end the agent, nor any other VM.
    #[error("the reconcile panicked")]
    Panicked,
}

/// Visits a VM, and turns a panic into an error of this VM alone.
///
/// # Errors
/// See [`Error`]; the caller requeues.
pub async fn reconcile(vm: Arc<VirtualMachine>, cx: Arc<Context>) -> Result<Action, Error> {
    let timer = cx.metrics.reconcile_timer();
    let result = AssertUnwindSafe(visit(&vm, &cx))
        .catch_unwind()
        .await
        .unwrap_or(Err(Error::Panicked));
    drop(timer);
    if result.is_ok()
        && let Some(uid) = vm.uid()
    {
        lock(&cx.failures).remove(&uid);
    }
    result
}

/// What to do after a failed visit.
pub fn error_policy(vm: Arc<VirtualMachine>, error: &Error, cx: Arc<Context>) -> Action {
    cx.metrics.reconcile_failed();
    let failures = {
        let mut failures = lock(&cx.failures);
        let count = failures.entry(vm.uid().unwrap_or_default()).or_default();
        *count = count.saturating_add(1);
        *count
    };
    let wait = retry_after(failures);
    tracing::warn!(vm = %format!("{}/{}", vm.namespace().unwrap_or_default(), vm.name_any()), %error, failures, ?wait, "reconcile failed; tried again");
    Action::requeue(wait)
}

/// Delay after the n-th failed visit in a row: 1 s, 2 s, 4 s ... 60 s. The client itself retries nothing.
fn retry_after(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(6)).min(Duration::from_secs(60))
}

async fn visit(vm: &VirtualMachine, cx: &Context) -> Result<Action, Error> {
    let Some(uid) = vm.uid() else {
        return Ok(Action::await_change());
    };
    lock(&cx.names).insert(uid.clone(), ObjectRef::from_obj(vm));
    let mut memory = recall(vm, &uid, cx);
    let result = if vm.metadata.deletion_timestamp.is_some() {
        tear_down(vm, &uid, &mut memory, cx).await
    } else if add_finalizer(vm, &uid, cx).await? {
        attend(vm, &uid, &mut memory, cx).await
    } else {
        return Ok(Action::await_change());
    };
    if !matches!(result, Ok(None)) {
        lock(&cx.memories).insert(uid, memory);
    }
    result.map(|action| action.unwrap_or_else(Action::await_change))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory of a VM: from this process, else from disk and from its status, which this agent wrote.
fn recall(vm: &VirtualMachine, uid: &str, cx: &Context) -> Memory {
    if let Some(memory) = lock(&cx.memories).get(uid) {
        return memory.clone();
    }
    let status = vm.status.clone().unwrap_or_default();
    let record = cx.records.load(uid).unwrap_or_else(|| {
        let known_machine = cx.machines.observe(uid).is_some_and(|o| o.run > 0);
        crate::memory::Record {
            namespace: vm.namespace().unwrap_or_default(),
            name: vm.name_any(),
            restart_count: status.restart_count,
            // A lost record must not restart a machine that runs.
            restarted_at: if known_machine {
                vm.spec.restarted_at.clone()
            } else {
                None
            },
            ..Default::default()
        }
    });
    let mut memory = Memory {
        record,
        status: status.clone(),
        ..Memory::default()
    };
    events::recall(&mut memory, &status);
    memory
}

/// Looks after a VM that is to exist.
async fn attend(vm: &VirtualMachine, uid: &str, memory: &mut Memory, cx: &Context) -> Result<Option<Action>, Error> {
    let now = SystemTime::now();
    let before = cx.machines.observe(uid);
    let life = life(before.as_ref());
    if let (Life::Ended(end), Some(observation)) = (&life, &before)
        && observation.run > memory.record.counted_run
    {
        memory.record.failures = failures_after(memory.record.failures, end);
        memory.record.counted_run = observation.run;
    }
    let restart_asked =
        vm.spec.restarted_at.is_some() && vm.spec.restarted_at != memory.record.restarted_at && life != Life::New;
    let decision = decide(&Situation {
        strategy: vm.spec.run_strategy,
        restart_asked,
        life: life.clone(),
        failures: memory.record.failures,
        now,
    });

    let record = &memory.record;
    let mut image = Part::Idle {
        digest: record.image.as_ref().map(|p| p.digest.clone()),
    };
    let mut kernel = Part::Idle {
        digest: record.kernel.as_ref().map(|p| p.digest.clone()),
    };
    let mut disk_problem: Option<(&'static str, String)> = None;
    let mut keys_known = None;
    let mut kernel_name = None;
    let mut hold = None;
    match decision {
        Decision::Start { .. } | Decision::Keep => {
            let starting = matches!(decision, Decision::Start { .. });
            let declared = decision == (Decision::Start { declared: true });
            let ephemeral = vm.spec.root_disk.persistence == vmlet_crds::Persistence::Ephemeral;
            let has_disk = before.as_ref().is_some_and(|o| o.disk.is_some());
            let pinned = Pinned {
                image: record.image.as_ref().filter(|_| has_disk && !(ephemeral && declared)),
                kernel: record.kernel.as_ref(),
                runs: !starting,
            };
            let parts = &cx.dereferencer;
            let (found, keys) = tokio::join!(
                parts.find(vm, uid, pinned, Reading::Seen),
                parts.authorized_keys(vm, uid),
            );
            let mut found = found?;
            match keys? {
                Ok(keys) => keys_known = Some(keys),
                Err(problem) => disk_problem = Some(problem),
            }
            let ready = found.image.ready.is_some() && found.kernel.ready.is_some();
            // What the watch told may be older than what was asked for last.
            if starting && ready && !parts.is_current(&found).await? {
                found = parts.find(vm, uid, pinned, Reading::Live).await?;
            }
            if let (Some(disk), Some(files), Some(keys)) = (&found.image.ready, &found.kernel.ready, &keys_known) {
                if memory.record.host_key_seed.is_empty() {
                    memory.record.host_key_seed = hostkey::new_seed().unwrap_or_default();
                }
                let parts = Parts {
                    vm,
                    uid,
                    image: disk,
                    kernel: files,
                    kernel_default_args: &found.default_args,
                    keys,
                    host_key_seed: &memory.record.host_key_seed,
                    reset_disk: declared,
                };
                match machine_spec(&parts) {
                    Err(problem) => disk_problem = Some((problem.reason, problem.message)),
                    Ok(spec) => {
                        let mut run = before.as_ref().map_or(0, |o| o.run);
                        if starting {
                            run += 1;
                            let record = &mut memory.record;
                            record.namespace = vm.namespace().unwrap_or_default();
                            record.name = vm.name_any();
                            record.image = found.image.pin.or_else(|| record.image.take());
                            record.kernel = found.kernel.pin;
                            record.fingerprint = fingerprint(&vm.spec, keys);
                            let files = vm.spec.guest.files.iter().map(|file| file.path.as_str());
                            let public = hostkey::public(&record.host_key_seed, files);
                            record.ssh_host_key = public.filter(|_| !keys.is_empty());
                            record.restarted_at = vm.spec.restarted_at.clone();
                            if !declared {
                                record.restart_count = record.restart_count.saturating_add(1);
                            }
                            cx.records.store(uid, record)?;
                            cx.metrics.started();
                        }
                        cx.machines.apply(
                            uid,
                            Goal::Run {
                                run,
                                spec: Box::new(spec),
                            },
                        );
                        if starting {
                            let first = status::first_news(&memory.status);
                            hold = (first == Milestone::Disk).then(|| cx.machines.hold());
                            cx.machines.reached(uid, run, first, START).await;
                        }
                    }
                }
            }
            kernel_name = vm
                .spec
                .kernel_ref
                .as_ref()
                .or_else(|| found.object.as_ref().and_then(|image| image.spec.kernel_ref.as_ref()))
                .map(|reference| reference.name.clone());
            image = found.image.part;
            kernel = found.kernel.part;
            let here = |part: &Part| matches!(part, Part::Ready { .. });
            if here(&image) && here(&kernel) && keys_known.is_some() {
                let of_keys = &vm.spec.guest.ssh_key_secret_refs;
                cx.dereferencer
                    .secrets
                    .retain(uid, |name| of_keys.iter().any(|reference| reference.name == name));
            }
        }
        Decision::Stop => cx.machines.apply(uid, Goal::Stop { grace: grace(vm) }),
        Decision::Rest | Decision::Complete { .. } => cx.dereferencer.secrets.forget(uid),
        Decision::Wait { .. } | Decision::Watch => {}
    }

    let after = cx.machines.observe(uid);
    let changed = keys_known.as_ref().is_some_and(|keys| {
        !memory.record.fingerprint.is_empty() && memory.record.fingerprint != fingerprint(&vm.spec, keys)
    });
    let restart_required = after
        .as_ref()
        .is_some_and(|o| alive(&o.phase) && (changed || o.keys_refused.is_some()));
    let remembered = memory.clone();
    let sight = Sight {
        vm,
        node: &cx.node,
        memory: &remembered,
        decision,
        image: &image,
        kernel: &kernel,
        kernel_name: kernel_name.as_deref(),
        disk_problem: disk_problem
            .as_ref()
            .map(|(reason, message)| (*reason, message.as_str())),
        observation: after.as_ref(),
        restart_required,
        now,
    };
    let status = status::build(&sight);
    let notes = events::due(memory, &sight);
    write_status(vm, uid, status, memory, cx).await?;
    // Its VMM and those of others may go on.
    drop(hold);
    publish(vm, notes, cx).await;
    Ok(Some(next_visit(
        decision,
        &[&image, &kernel],
        disk_problem.is_some(),
        after.as_ref(),
        now,
    )))
}

fn grace(vm: &VirtualMachine) -> Duration {
    Duration::from_secs(u64::try_from(vm.spec.termination_grace_period_seconds).unwrap_or(0))
}

/// How far a machine is, for the decision.
fn life(observation: Option<&Observation>) -> Life {
    let Some(observation) = observation else {
        return Life::New;
    };
    match &observation.phase {
        Phase::Deleted => Life::New,
        Phase::Preparing | Phase::Starting | Phase::Running { .. } | Phase::Paused { .. } => Life::Alive,
        Phase::Stopping | Phase::Deleting => Life::Stopping,
        Phase::Unmanageable { .. } => Life::Unmanageable,
        // A start that fails before anything was made leaves nothing on the host, and is an end all the same.
        Phase::Stopped | Phase::Absent => match &observation.termination {
            Some(end) if end.run == observation.run => Life::Ended(End {
                cause: cause(end.reason),
                at: end.finished_at,
                lasted: observation
                    .started_at
                    .and_then(|start| end.finished_at.duration_since(start).ok())
                    .unwrap_or_default(),
            }),
            // A run that was begun and of whose end nothing is known: whatever it was, it is over.
            _ if observation.run > 0 => Life::Ended(End {
                cause: Cause::Failure,
                at: observation.started_at.unwrap_or(SystemTime::UNIX_EPOCH),
                lasted: Duration::ZERO,
            }),
            _ => Life::New,
        },
    }
}

fn cause(reason: vmlet_machines::TerminationReason) -> Cause {
    use vmlet_machines::TerminationReason as Reason;
    match reason {
        Reason::Stopped | Reason::ForcedKill => Cause::Declared,
        Reason::Completed => Cause::Clean,
        Reason::HostReboot => Cause::HostReboot,
        _ => Cause::Failure,
    }
}

fn next_visit(
    decision: Decision,
    parts: &[&Part; 2],
    problem: bool,
    observation: Option<&Observation>,
    now: SystemTime,
) -> Action {
    let until = |at: SystemTime| at.duration_since(now).unwrap_or_default() + Duration::from_millis(50);
    let mut wait = SAFETY_REQUEUE;
    if let Decision::Wait { until: at } = decision {
        wait = wait.min(until(at));
    }
    if problem || observation.is_some_and(|o| o.ports.iter().any(|p| p.error.is_some())) {
        wait = wait.min(POLL);
    }
    for part in parts {
        wait = match part {
            Part::Waiting { .. } => wait.min(PROGRESS),
            Part::Blocked { .. } => wait.min(POLL),
            Part::Failed { retry_at, .. } => wait.min(until(*retry_at)),
            Part::Idle { .. } | Part::Ready { .. } | Part::Unknown { .. } => wait,
        };
    }
    Action::requeue(wait)
}

/// Removes everything of a VM from this node, then the finalizer. `None`: all of it is gone.
async fn tear_down(vm: &VirtualMachine, uid: &str, memory: &mut Memory, cx: &Context) -> Result<Option<Action>, Error> {
    if !vm.finalizers().iter().any(|f| f == FINALIZER) {
        forget(uid, cx);
        return Ok(None);
    }
    // Said to a machine that is deleted, it would begin another one.
    if cx.machines.observe(uid).is_none_or(|o| o.phase != Phase::Deleted) {
        cx.machines.apply(uid, Goal::Delete { grace: grace(vm) });
    }
    cx.dereferencer.artifacts.release(&interest(uid)).await;
    let observation = cx.machines.observe(uid);
    if let Some(observation) = observation
        .as_ref()
        .filter(|o| !matches!(o.phase, Phase::Absent | Phase::Deleted))
    {
        let idle = Part::Idle { digest: None };
        let remembered = memory.clone();
        let sight = Sight {
            vm,
            node: &cx.node,
            memory: &remembered,
            decision: Decision::Watch,
            image: &idle,
            kernel: &idle,
            kernel_name: None,
            disk_problem: None,
            observation: Some(observation),
            restart_required: false,
            now: SystemTime::now(),
        };
        let message = observation.problem.clone().unwrap_or_else(|| {
            format!(
                "its machine is being stopped and removed; a guest that is up gets {} s to shut down",
                vm.spec.termination_grace_period_seconds
            )
        });
        let status = status::terminating(&sight, &message);
        write_status(vm, uid, status, memory, cx).await?;
        return Ok(Some(Action::requeue(POLL)));
    }
    cx.dereferencer.artifacts.unpin(&interest(uid)).await?;
    cx.records.remove(uid)?;
    remove_finalizer(vm, uid, cx).await?;
    forget(uid, cx);
    Ok(None)
}

/// Drops all memory of a VM whose machine is gone.
pub fn forget(uid: &str, cx: &Context) {
    lock(&cx.memories).remove(uid);
    lock(&cx.names).remove(uid);
    lock(&cx.failures).remove(uid);
    cx.own_writes.forget(uid);
    cx.dereferencer.secrets.forget(uid);
    cx.machines.forget(uid);
}

/// Puts the finalizer on, before the first host resource. `false`: the object is not the one we know.
async fn add_finalizer(vm: &VirtualMachine, uid: &str, cx: &Context) -> Result<bool, Error> {
    if vm.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(true);
    }
    let mut patch = vec![json!({"op": "test", "path": "/metadata/uid", "value": uid})];
    if vm.finalizers().is_empty() {
        patch.push(json!({"op": "add", "path": "/metadata/finalizers", "value": [FINALIZER]}));
    } else {
        patch.push(json!({"op": "test", "path": "/metadata/finalizers", "value": vm.finalizers()}));
        patch.push(json!({"op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER}));
    }
    json_patch(vm, patch, cx).await
}

async fn remove_finalizer(vm: &VirtualMachine, uid: &str, cx: &Context) -> Result<(), Error> {
    if let Some(index) = vm.finalizers().iter().position(|f| f == FINALIZER) {
        let path = format!("/metadata/finalizers/{index}");
        let patch = vec![
            json!({"op": "test", "path": "/metadata/uid", "value": uid}),
            json!({"op": "test", "path": path, "value": FINALIZER}),
            json!({"op": "remove", "path": path}),
        ];
        json_patch(vm, patch, cx).await?;
    }
    Ok(())
}

/// Applies a JSON patch. `false`: the object is gone.
async fn json_patch(vm: &VirtualMachine, patch: Vec<serde_json::Value>, cx: &Context) -> Result<bool, Error> {
    let patch: json_patch::Patch = match serde_json::from_value(patch.into()) {
        Ok(patch) => patch,
        Err(error) => return Err(Error::Api(kube::Error::SerdeError(error))),
    };
    let api: Api<VirtualMachine> = Api::namespaced(cx.client.clone(), &vm.namespace().unwrap_or_default());
    match api
        .patch(&vm.name_any(), &PatchParams::default(), &Patch::<()>::Json(patch))
        .await
    {
        Ok(object) => {
            cx.own_writes.answered(&object);
            Ok(true)
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Writes the whole status, of this very object only.
async fn write_status(
    vm: &VirtualMachine,
    uid: &str,
    status: VirtualMachineStatus,
    memory: &mut Memory,
    cx: &Context,
) -> Result<(), Error> {
    // The object alone does not tell: it may be a copy from before the last write.
    let stands = says(vm.status.as_ref(), &status)? && says(Some(&memory.status), &status)?;
    memory.status = status;
    cx.own_writes.stands(uid, &memory.status);
    if stands {
        return Ok(());
    }
    let api: Api<VirtualMachine> = Api::namespaced(cx.client.clone(), &vm.namespace().unwrap_or_default());
    let patch = status_patch(uid, &memory.status).map_err(kube::Error::SerdeError)?;
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match api
        .patch_status(&vm.name_any(), &params, &Patch::<()>::Json(patch))
        .await
    {
        Ok(object) => cx.own_writes.answered(&object),
        Err(error) if !is_another_object(&error) => return Err(error.into()),
        // Gone, or another object of the same name: then this status is nobody's.
        Err(_) => {}
    }
    Ok(())
}

/// Whether `there` is this status, to the precision of what is stored.
fn says(there: Option<&VirtualMachineStatus>, status: &VirtualMachineStatus) -> Result<bool, kube::Error> {
    let value = |status| serde_json::to_value(status).map_err(kube::Error::SerdeError);
    Ok(match there {
        Some(there) => value(there)? == value(status)?,
        None => false,
    })
}

async fn publish(vm: &VirtualMachine, notes: Vec<events::Note>, cx: &Context) {
    for note in notes {
        record(cx, &note.to_event(), &vm.object_ref(&())).await;
    }
}

/// Publishes an event. Each gets a recorder of its own: a shared one takes events of one reason for a
/// series of the first and drops the text of the others. What is due is told once anyway.
pub async fn record(cx: &Context, event: &Event, about: &ObjectReference) {
    let recorder = Recorder::new(cx.client.clone(), cx.reporter.clone());
    // An event that is lost (a namespace that goes away refuses it) harms nothing.
    if let Err(error) = recorder.publish(event, about).await {
        tracing::debug!(about = ?about.name, reason = %event.reason, error = vmlet_crds::in_words(&error), "event was not published");
    }
}
