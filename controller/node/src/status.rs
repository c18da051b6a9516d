//! What a VM's status says of what was seen. Pure: the same sight gives the same status.

use std::time::SystemTime;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use vmlet_crds::{
    BootTiming, PinnedImage, PinnedKernel, PortStatus, Protocol, Termination, VirtualMachine, VirtualMachineStatus,
    VmmStatus, with_next_try,
};
use vmlet_machines::{Milestone, Observation, Phase};

use crate::dereference::Part;
use crate::life::Decision;
use crate::memory::{Memory, Pin};

/// Everything a status is made from.
pub struct Sight<'a> {
    /// The object.
    pub vm: &'a VirtualMachine,
    /// Name of this node.
    pub node: &'a str,
    /// What is remembered.
    pub memory: &'a Memory,
    /// What was decided.
    pub decision: Decision,
    /// The image.
    pub image: &'a Part,
    /// The kernel.
    pub kernel: &'a Part,
    /// Name of the Kernel object, where one is named.
    pub kernel_name: Option<&'a str>,
    /// What keeps the disk (or the configuration) from being made: reason and message.
    pub disk_problem: Option<(&'a str, &'a str)>,
    /// The machine.
    pub observation: Option<&'a Observation>,
    /// Whether the spec differs from what runs.
    pub restart_required: bool,
    /// Now.
    pub now: SystemTime,
}

/// A condition before its time is known.
struct Verdict {
    type_: &'static str,
    status: &'static str,
    reason: String,
    message: String,
}

impl Verdict {
    fn new(type_: &'static str, status: &'static str, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            type_,
            status,
            reason: reason.into(),
            message: message.into(),
        }
    }
}

const TRUE: &str = "True";
const FALSE: &str = "False";
const UNKNOWN: &str = "Unknown";

/// Builds the whole status.
pub fn build(sight: &Sight<'_>) -> VirtualMachineStatus {
    let observation = sight.observation;
    let image = part("ImageReady", sight.image);
    let kernel = part("KernelReady", sight.kernel);
    let disk = disk(sight);
    let network = network(sight);
    let (running, guest) = running(sight);
    let keys_refused = observation.and_then(|o| o.keys_refused.as_ref());
    let restart = if sight.restart_required {
        let mut message =
            "spec has changes that take effect at the next start: set spec.restartedAt to restart now".to_owned();
        if let Some(error) = keys_refused {
            message += &format!(" (the running guest could not take the ssh keys: {error})");
        }
        Verdict::new("RestartRequired", TRUE, "SpecChanged", message)
    } else {
        Verdict::new("RestartRequired", FALSE, "UpToDate", "")
    };
    let completed = completed(sight);
    let ready = ready(sight, &[&image, &kernel, &disk, &network, &running, &guest], &completed);
    let scheduled = Verdict::new("Scheduled", TRUE, "Bound", format!("bound to node {}", sight.node));
    let verdicts = [
        scheduled, image, kernel, disk, network, running, guest, restart, completed, ready,
    ];

    let record = &sight.memory.record;
    VirtualMachineStatus {
        observed_generation: sight.vm.metadata.generation,
        conditions: verdicts.into_iter().map(|v| dated(v, sight)).collect(),
        node_name: Some(sight.node.to_owned()),
        image: record.image.as_ref().map(|pin| PinnedImage {
            name: pin.name.clone(),
            digest: pin.digest.clone(),
        }),
        kernel: record.kernel.as_ref().map(pinned_kernel),
        vmm: observation.and_then(|o| o.vmm.as_ref()).map(|vmm| VmmStatus {
            type_: vmm.kind.clone(),
            accelerator: vmm.accelerator.to_uppercase(),
            version: vmm.version.clone(),
        }),
        addresses: observation
            .filter(|o| alive(&o.phase))
            .map(|o| o.addresses.clone())
            .unwrap_or_default(),
        ports: ports(sight),
        boot_id: observation.filter(|o| alive(&o.phase)).and_then(|o| o.boot_id.clone()),
        ssh_host_key: record.ssh_host_key.clone(),
        start_time: observation.and_then(|o| o.started_at).map(time),
        observed_restarted_at: record.restarted_at.clone(),
        restart_count: record.restart_count,
        last_termination: observation.and_then(|o| o.termination.as_ref()).map(|t| Termination {
            reason: t.reason.to_string(),
            exit_code: t.exit_code,
            message: t.message.clone(),
            finished_at: time(t.finished_at),
        }),
        next_retry_time: match sight.decision {
            Decision::Wait { until } => Some(time(until)),
            _ => None,
        },
        boot_timings: observation
            .map(|o| {
                o.timings
                    .iter()
                    .map(|t| BootTiming {
                        step: t.step.clone(),
                        at: MicroTime(timestamp(t.at)),
                    })
                    .collect()
            })
            .unwrap_or_default(),
    }
}

/// What of a start is told first. Who waited for an image hears of the disk, since others who waited make the
/// host busy and the VMM late; a warm start saves that write.
pub fn first_news(status: &VirtualMachineStatus) -> Milestone {
    let waited = |c: &Condition| c.type_ == "ImageReady" && c.status == "False";
    if status.conditions.iter().any(waited) {
        Milestone::Disk
    } else {
        Milestone::Vmm
    }
}

/// Status of a VM that is on its way out.
pub fn terminating(sight: &Sight<'_>, message: &str) -> VirtualMachineStatus {
    let mut status = build(sight);
    let ready = dated(Verdict::new("Ready", FALSE, "Terminating", message), sight);
    status.conditions.retain(|c| c.type_ != "Ready");
    status.conditions.push(ready);
    status
}

fn pinned_kernel(pin: &Pin) -> PinnedKernel {
    PinnedKernel {
        name: pin.name.clone(),
        digest: pin.digest.clone(),
        version: pin.version.clone(),
    }
}

fn part(type_: &'static str, part: &Part) -> Verdict {
    match part {
        Part::Idle { digest: Some(digest) } => Verdict::new(type_, TRUE, "Present", digest.clone()),
        Part::Idle { digest: None } => Verdict::new(type_, UNKNOWN, "NotNeeded", "the machine is not to be started"),
        Part::Ready { digest } => Verdict::new(type_, TRUE, "Present", digest.clone()),
        Part::Waiting { reason, message } => Verdict::new(type_, FALSE, *reason, message.clone()),
        Part::Unknown { reason, message } => Verdict::new(type_, UNKNOWN, reason.clone(), message.clone()),
        Part::Blocked { reason, message } => Verdict::new(type_, FALSE, reason.clone(), message.clone()),
        Part::Failed {
            reason,
            message,
            retry_at,
        } => Verdict::new(type_, FALSE, reason.clone(), with_next_try(message, *retry_at)),
    }
}

fn disk(sight: &Sight<'_>) -> Verdict {
    let lives = sight.observation.is_some_and(|o| alive(&o.phase) && o.disk.is_some());
    if let Some((reason, message)) = sight.disk_problem.filter(|_| !lives) {
        return Verdict::new("DiskReady", FALSE, reason, message);
    }
    match sight.observation.and_then(|o| o.disk.as_ref()) {
        Some(disk) => {
            let mut message = format!("{}Mi on base {}", disk.size_bytes >> 20, short(&disk.base_id));
            if let Some((_, problem)) = sight.disk_problem {
                message += &format!("; in the way of the next start: {problem}");
            }
            Verdict::new("DiskReady", TRUE, "Present", message)
        }
        None => Verdict::new("DiskReady", FALSE, "NotCreated", "the disk is made at the first start"),
    }
}

fn short(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id)
}

fn network(sight: &Sight<'_>) -> Verdict {
    let Some(observation) = sight.observation.filter(|o| alive(&o.phase)) else {
        return Verdict::new("NetworkReady", UNKNOWN, "NotRunning", "");
    };
    if matches!(observation.phase, Phase::Unmanageable { .. }) && observation.ports.is_empty() {
        let message = "which ports are forwarded cannot be told";
        return Verdict::new("NetworkReady", UNKNOWN, "Unmanageable", message);
    }
    let refused: Vec<String> = observation
        .ports
        .iter()
        .filter_map(|p| p.error.as_ref().map(|error| format!("port \"{}\": {error}", p.name)))
        .collect();
    if !refused.is_empty() {
        return Verdict::new("NetworkReady", FALSE, "PortUnavailable", refused.join("; "));
    }
    if observation.ports.iter().any(|p| p.host_port.is_none()) {
        return Verdict::new("NetworkReady", FALSE, "Forwarding", "port forwards are being set up");
    }
    Verdict::new("NetworkReady", TRUE, "Forwarded", "")
}

fn running(sight: &Sight<'_>) -> (Verdict, Verdict) {
    let pair = |status, reason: &str, message: &str, guest_status, guest_reason: &str| {
        (
            Verdict::new("Running", status, reason, message),
            Verdict::new("GuestReady", guest_status, guest_reason, ""),
        )
    };
    let Some(observation) = sight.observation else {
        return pair(FALSE, "NotStarted", "", FALSE, "NotRunning");
    };
    match &observation.phase {
        Phase::Deleted => pair(FALSE, "NotStarted", "", FALSE, "NotRunning"),
        Phase::Absent | Phase::Stopped => {
            let (reason, message) = observation
                .termination
                .as_ref()
                .map_or(("NotStarted".to_owned(), String::new()), |t| {
                    (t.reason.to_string(), t.message.clone())
                });
            pair(FALSE, &reason, &message, FALSE, "NotRunning")
        }
        Phase::Preparing => pair(
            FALSE,
            "Preparing",
            "its disk and what it starts with are being made",
            FALSE,
            "NotRunning",
        ),
        Phase::Starting => pair(TRUE, "Starting", "the guest has not been ready yet", FALSE, "Booting"),
        Phase::Running { guest_ready: true } => pair(TRUE, "Running", "", TRUE, "Ready"),
        Phase::Running { guest_ready: false } => pair(
            TRUE,
            "Running",
            "the guest goes down by itself: to reboot, or for good",
            FALSE,
            "GoingDown",
        ),
        Phase::Paused { reason } => pair(TRUE, "Paused", reason, FALSE, "Paused"),
        Phase::Stopping => pair(TRUE, "Stopping", "", FALSE, "Stopping"),
        Phase::Deleting => pair(TRUE, "Deleting", "", FALSE, "Stopping"),
        Phase::Unmanageable { message } => pair(UNKNOWN, "Unmanageable", message, UNKNOWN, "Unmanageable"),
    }
}

fn completed(sight: &Sight<'_>) -> Verdict {
    match sight.decision {
        Decision::Complete { succeeded: true } => Verdict::new("Completed", TRUE, "Succeeded", last_words(sight)),
        Decision::Complete { succeeded: false } => Verdict::new("Completed", TRUE, "Failed", last_words(sight)),
        _ => Verdict::new("Completed", FALSE, "NotCompleted", ""),
    }
}

fn last_words(sight: &Sight<'_>) -> String {
    match sight.observation.and_then(|o| o.termination.as_ref()) {
        Some(t) if t.message.is_empty() => t.reason.to_string(),
        Some(t) => t.message.clone(),
        None => String::new(),
    }
}

/// The summary: the first thing that keeps the machine from serving, in words for a tired operator.
fn ready(sight: &Sight<'_>, parts: &[&Verdict; 6], completed: &Verdict) -> Verdict {
    let [image, kernel, disk, network, running, guest] = parts;
    let no = |reason: &str, message: String| Verdict::new("Ready", FALSE, reason, message);
    let unmanageable = match sight.observation.map(|o| &o.phase) {
        Some(Phase::Unmanageable { message }) => Some(message),
        _ => None,
    };
    match sight.decision {
        Decision::Complete { .. } => return no(&completed.reason, completed.message.clone()),
        Decision::Rest => return no("Halted", "spec.runStrategy is Halted".to_owned()),
        Decision::Stop => {
            let message = unmanageable.map(|message| format!("its VMM cannot be controlled: {message}"));
            return no("Stopping", message.unwrap_or_default());
        }
        Decision::Wait { until } => {
            let message = format!(
                "started again at {}; the last run ended: {}",
                timestamp(until).strftime("%H:%M:%SZ"),
                last_words(sight)
            );
            return no("BackOff", message);
        }
        Decision::Start { .. } | Decision::Keep | Decision::Watch => {}
    }
    if let Some(message) = unmanageable {
        return no("Unmanageable", message.clone());
    }
    let machine_lives = sight
        .observation
        .is_some_and(|o| alive(&o.phase) || o.phase == Phase::Stopping);
    if !machine_lives {
        for part in [image, kernel, disk] {
            if part.status == FALSE && part.reason != "NotCreated" {
                return no(&part.reason, part.message.clone());
            }
        }
        let message = match sight.observation.and_then(|o| o.termination.as_ref()) {
            Some(_) => format!("the last run ended: {}", last_words(sight)),
            None => String::new(),
        };
        return no("Starting", message);
    }
    if guest.status != TRUE {
        let reason = if guest.reason == "Booting" {
            "Booting"
        } else {
            &guest.reason
        };
        return no(reason, running.message.clone());
    }
    if network.status != TRUE {
        return no(&network.reason, network.message.clone());
    }
    Verdict::new("Ready", TRUE, "Running", "")
}

/// Whether a VMM lives for the machine (or may live) and is to go on.
pub fn alive(phase: &Phase) -> bool {
    matches!(
        phase,
        Phase::Starting | Phase::Running { .. } | Phase::Paused { .. } | Phase::Unmanageable { .. }
    )
}

fn dated(verdict: Verdict, sight: &Sight<'_>) -> Condition {
    let before = sight.memory.status.conditions.iter().find(|c| c.type_ == verdict.type_);
    let last_transition_time = match before {
        Some(before) if before.status == verdict.status => before.last_transition_time.clone(),
        _ => time(sight.now),
    };
    Condition {
        type_: verdict.type_.to_owned(),
        status: verdict.status.to_owned(),
        reason: verdict.reason,
        message: truncated(verdict.message, 1024),
        observed_generation: sight.vm.metadata.generation,
        last_transition_time,
    }
}

/// Cuts a text to so many bytes, at a character.
pub fn truncated(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let mut end = bytes - 3;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    text
}

fn ports(sight: &Sight<'_>) -> Vec<PortStatus> {
    let Some(observation) = sight.observation.filter(|o| alive(&o.phase)) else {
        return Vec::new();
    };
    if matches!(observation.phase, Phase::Unmanageable { .. }) && observation.ports.is_empty() {
        // Unknown is not gone: what was told last is the best guess.
        return sight.memory.status.ports.clone();
    }
    observation
        .ports
        .iter()
        .map(|port| PortStatus {
            name: port.name.clone(),
            protocol: match port.protocol {
                vmlet_machines::Protocol::Tcp => Protocol::Tcp,
                vmlet_machines::Protocol::Udp => Protocol::Udp,
            },
            host_ip: port.host_ip.to_string(),
            host_port: port.host_port.map(i32::from),
            guest_port: i32::from(port.guest_port),
            message: port.error.clone(),
        })
        .collect()
}

/// A system time as a Kubernetes time.
pub fn timestamp(at: SystemTime) -> jiff::Timestamp {
    jiff::Timestamp::try_from(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// A system time as a Kubernetes time of whole seconds, as the API stores it.
pub fn time(at: SystemTime) -> Time {
    let seconds = timestamp(at).as_second();
    Time(jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod tests;
