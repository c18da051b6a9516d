//! What a user can act on, told once as an event. Which events are due is pure.

use std::time::{Duration, SystemTime};

use kube::runtime::events::{Event, EventType};
use vmlet_crds::{VirtualMachineStatus, without_next_try};

use vmlet_machines::Termination;

use crate::dereference::Part;
use crate::life::Decision;
use crate::memory::Memory;
use crate::status::{Sight, time, truncated};

/// Longest note that the API takes, in bytes.
pub const MAX_NOTE: usize = 1024;

/// An event to be published.
#[derive(Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether somebody should look.
    pub warning: bool,
    /// CamelCase.
    pub reason: String,
    /// What was being done, CamelCase.
    pub action: &'static str,
    /// For a person.
    pub note: String,
}

impl Note {
    /// As kube publishes it.
    pub fn to_event(&self) -> Event {
        Event {
            type_: if self.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: self.reason.clone(),
            note: Some(truncated(self.note.clone(), MAX_NOTE)),
            action: self.action.to_owned(),
            secondary: None,
        }
    }
}

/// Takes up what an earlier agent has told, so that a restart of the agent tells nothing twice.
pub fn recall(memory: &mut Memory, status: &VirtualMachineStatus) {
    let mut tell = |key, text: Option<String>| {
        if let Some(text) = text {
            memory.told.insert(key, text);
        }
    };
    tell("started", status.start_time.as_ref().map(|t| t.0.to_string()));
    tell(
        "exited",
        status.last_termination.as_ref().map(|t| t.finished_at.0.to_string()),
    );
    tell("ready", status.boot_id.clone());
}

/// What is due to be told. Remembers it as told.
pub fn due(memory: &mut Memory, sight: &Sight<'_>) -> Vec<Note> {
    let mut notes = Vec::new();
    let image = format!("image \"{}\"", sight.vm.spec.image_ref.name);
    let kernel = match sight.kernel_name {
        Some(name) => format!("kernel \"{name}\""),
        None => "the kernel".to_owned(),
    };
    let mut image_wait = memory.image_wait;
    let mut kernel_wait = memory.kernel_wait;
    pull(
        &mut notes,
        memory,
        "image",
        &image,
        sight.image,
        &mut image_wait,
        sight.now,
    );
    pull(
        &mut notes,
        memory,
        "kernel",
        &kernel,
        sight.kernel,
        &mut kernel_wait,
        sight.now,
    );
    memory.image_wait = image_wait;
    memory.kernel_wait = kernel_wait;

    let mut once = |memory: &mut Memory, key: &'static str, id: String, note: Note| {
        if memory.told.get(key) != Some(&id) {
            memory.told.insert(key, id);
            notes.push(note);
        }
    };
    let note = |warning, reason: &str, action, note: String| Note {
        warning,
        reason: reason.to_owned(),
        action,
        note,
    };

    if let Some((reason, message)) = sight.disk_problem {
        once(
            memory,
            "disk",
            message.to_owned(),
            note(true, reason, "Starting", message.to_owned()),
        );
    } else {
        memory.told.remove("disk");
    }
    if let Some(observation) = sight.observation {
        // One without a version was found running, its record lost: its start was told when it was one.
        let vmm = observation.vmm.as_ref().filter(|vmm| !vmm.version.is_empty());
        if let (Some(at), Some(vmm)) = (observation.started_at, vmm) {
            let text = format!(
                "Started {} {} with {}, run {}",
                vmm.kind,
                vmm.version,
                vmm.accelerator.to_uppercase(),
                observation.run
            );
            once(
                memory,
                "started",
                time(at).0.to_string(),
                note(false, "Started", "Starting", text),
            );
        }
        if let (Some(boot), Some(ready), Some(started)) =
            (&observation.boot_id, observation.ready_at, observation.started_at)
        {
            let text = if observation.reboots == 0 {
                format!(
                    "Guest is ready after {}",
                    seconds(ready.duration_since(started).unwrap_or_default())
                )
            } else {
                format!("Guest is ready again after reboot {}", observation.reboots)
            };
            once(
                memory,
                "ready",
                boot.clone(),
                note(false, "GuestReady", "Booting", text),
            );
        }
        if let Some(end) = &observation.termination {
            let text = ended(end);
            once(
                memory,
                "exited",
                time(end.finished_at).0.to_string(),
                note(!end.reason.is_success(), "Exited", "Running", text),
            );
        }
        let refused: Vec<String> = observation
            .ports
            .iter()
            .filter_map(|p| p.error.as_ref().map(|error| format!("port \"{}\": {error}", p.name)))
            .collect();
        if refused.is_empty() {
            memory.told.remove("ports");
        } else {
            let text = refused.join("; ");
            once(
                memory,
                "ports",
                text.clone(),
                note(true, "PortUnavailable", "Forwarding", text),
            );
        }
    }
    match sight.decision {
        Decision::Wait { until } => {
            let wait = until.duration_since(sight.now).unwrap_or_default();
            let text = format!(
                "Started again in {} (failure {} in a row)",
                seconds(wait),
                sight.memory.record.failures
            );
            once(
                memory,
                "backoff",
                time(until).0.to_string(),
                note(true, "BackOff", "Restarting", text),
            );
        }
        Decision::Stop => {
            let text = format!(
                "Stopping the guest; what still runs in it after {} s is killed",
                sight.vm.spec.termination_grace_period_seconds
            );
            once(
                memory,
                "stop",
                "asked".to_owned(),
                note(false, "Stopping", "Stopping", text),
            );
        }
        Decision::Keep | Decision::Start { .. } => {
            memory.told.remove("stop");
        }
        Decision::Rest | Decision::Complete { .. } | Decision::Watch => {}
    }
    notes
}

fn pull(
    notes: &mut Vec<Note>,
    memory: &mut Memory,
    key: &'static str,
    what: &str,
    part: &Part,
    since: &mut Option<SystemTime>,
    now: SystemTime,
) {
    match part {
        Part::Waiting { .. } => {
            if since.is_none() {
                *since = Some(now);
                memory.told.remove(key);
                notes.push(Note {
                    warning: false,
                    reason: "Pulling".into(),
                    action: "Pulling",
                    note: format!("Pulling {what}"),
                });
            }
        }
        Part::Ready { digest } => {
            if let Some(start) = since.take() {
                let took = seconds(now.duration_since(start).unwrap_or_default());
                notes.push(Note {
                    warning: false,
                    reason: "Pulled".into(),
                    action: "Pulling",
                    note: format!("Pulled {what} in {took} ({digest})"),
                });
            }
            memory.told.remove(key);
        }
        Part::Blocked { reason, message } | Part::Failed { reason, message, .. } => {
            *since = None;
            // One failure is told once, and not again at each of its many tries.
            let alone = without_next_try(message).to_owned();
            if reason != "Resolving" && memory.told.get(key) != Some(&alone) {
                notes.push(Note {
                    warning: true,
                    reason: reason.clone(),
                    action: "Pulling",
                    note: alone.clone(),
                });
                memory.told.insert(key, alone);
            }
        }
        Part::Idle { .. } | Part::Unknown { .. } => {}
    }
}

/// How a run ended, in one sentence. The exit code stands behind what was said, unless it is part of it; a clean
/// one goes without saying.
fn ended(end: &Termination) -> String {
    let said = match end.message.as_str() {
        "" => end.reason.to_string(),
        message => format!("{}: {message}", end.reason),
    };
    match end.exit_code {
        Some(code) if code != 0 && !end.message.contains(&format!("status {code}")) => {
            format!("{said}; the exit code was {code}")
        }
        _ => said,
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmlet_crds::{VirtualMachine, VirtualMachineSpec};
    use vmlet_machines::{Observation, VmmInfo};

    fn tell(memory: &mut Memory, image: &Part, decision: Decision, now: u64) -> Vec<String> {
        tell_of(memory, image, decision, now, None)
    }

    fn tell_of(
        memory: &mut Memory,
        image: &Part,
        decision: Decision,
        now: u64,
        observation: Option<&Observation>,
    ) -> Vec<String> {
        let vm = VirtualMachine::new("a", VirtualMachineSpec::default());
        let remembered = memory.clone();
        let sight = Sight {
            vm: &vm,
            node: "n",
            memory: &remembered,
            decision,
            image,
            kernel: &Part::Idle { digest: None },
            kernel_name: None,
            disk_problem: None,
            observation,
            restart_required: false,
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(now),
        };
        due(memory, &sight).into_iter().map(|n| n.reason).collect()
    }

    #[test]
    fn a_pull_is_told_at_its_start_and_at_its_end_whatever_its_progress() {
        let mut memory = Memory::default();
        let waiting = |text: &str| Part::Waiting {
            reason: "Pulling",
            message: text.into(),
        };
        let start = Decision::Start { declared: true };
        assert_eq!(tell(&mut memory, &waiting("1"), start, 1), ["Pulling"]);
        assert!(tell(&mut memory, &waiting("2"), start, 2).is_empty());
        assert_eq!(
            tell(&mut memory, &Part::Ready { digest: "d".into() }, start, 3),
            ["Pulled"]
        );
        assert!(tell(&mut memory, &Part::Ready { digest: "d".into() }, start, 4).is_empty());
    }

    #[test]
    fn a_vmm_that_is_found_without_its_record_is_not_told_as_started_again() {
        let mut memory = Memory::default();
        let mut tell = |version: &str, started: u64| {
            let seen = Observation {
                run: 1,
                started_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(started)),
                vmm: Some(VmmInfo {
                    kind: "QEMU".into(),
                    accelerator: "tcg".into(),
                    version: version.into(),
                    pid: Some(1),
                }),
                ..Observation::default()
            };
            tell_of(
                &mut memory,
                &Part::Idle { digest: None },
                Decision::Keep,
                9,
                Some(&seen),
            )
        };
        assert_eq!(tell("7.2.22", 1), ["Started"]);
        assert!(
            tell("", 5).is_empty(),
            "its version is as lost as the time of its start"
        );
        assert_eq!(tell("7.2.22", 9), ["Started"], "the next run");
    }

    #[test]
    fn one_failure_is_told_once_and_another_one_again() {
        let mut memory = Memory::default();
        let failed = |message: &str| Part::Failed {
            reason: "NotFound".into(),
            message: message.into(),
            retry_at: SystemTime::UNIX_EPOCH,
        };
        let start = Decision::Start { declared: true };
        assert_eq!(tell(&mut memory, &failed("a"), start, 1), ["NotFound"]);
        assert!(tell(&mut memory, &failed("a"), start, 2).is_empty());
        assert_eq!(tell(&mut memory, &failed("b"), start, 3), ["NotFound"]);
    }

    #[test]
    fn tries_of_one_failure_are_one_event_whatever_the_time_of_the_next() {
        let mut memory = Memory::default();
        let blocked = |at: u64| Part::Blocked {
            reason: "Unavailable".into(),
            message: vmlet_crds::with_next_try("refused", SystemTime::UNIX_EPOCH + Duration::from_secs(at)),
        };
        let start = Decision::Start { declared: true };
        assert_eq!(tell(&mut memory, &blocked(10), start, 1), ["Unavailable"]);
        assert!(tell(&mut memory, &blocked(30), start, 11).is_empty());
    }

    #[test]
    fn an_end_is_told_in_one_sentence_that_does_not_contradict_itself() {
        use vmlet_machines::TerminationReason as R;
        let end = |reason, exit_code, message: &str| {
            ended(&Termination {
                run: 1,
                reason,
                exit_code,
                message: message.to_owned(),
                finished_at: SystemTime::UNIX_EPOCH,
            })
        };
        let asked = "it stopped as asked";
        assert_eq!(
            end(R::Stopped, Some(1), asked),
            "Stopped: it stopped as asked; the exit code was 1"
        );
        assert_eq!(end(R::Stopped, Some(0), asked), "Stopped: it stopped as asked");
        assert_eq!(end(R::Stopped, None, asked), "Stopped: it stopped as asked");
        let failed = "the workload ended with status 3";
        assert_eq!(end(R::Error, Some(3), failed), format!("Error: {failed}"));
        assert_eq!(end(R::Completed, Some(0), ""), "Completed");
    }

    #[test]
    fn each_back_off_is_told_once() {
        let mut memory = Memory::default();
        let idle = Part::Idle { digest: None };
        let wait = |until| Decision::Wait {
            until: SystemTime::UNIX_EPOCH + Duration::from_secs(until),
        };
        assert_eq!(tell(&mut memory, &idle, wait(10), 1), ["BackOff"]);
        assert!(tell(&mut memory, &idle, wait(10), 2).is_empty());
        assert_eq!(tell(&mut memory, &idle, wait(30), 11), ["BackOff"]);
    }
}
