//! Conditions with a transition time that moves only when the status flips.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use vmlet_crds::VirtualMachine;

/// The status of a VM that no node has seen yet: all conditions are set from the first visit on.
pub(crate) fn unseen(vm: &VirtualMachine, bound: bool, reason: &str, message: &str) -> serde_json::Value {
    let before = vm.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let generation = vm.metadata.generation;
    let bound = if bound {
        ("True", "Bound", "")
    } else {
        ("False", reason, message)
    };
    let conditions = [
        ("Scheduled", bound),
        ("ImageReady", ("Unknown", reason, "")),
        ("KernelReady", ("Unknown", reason, "")),
        ("DiskReady", ("False", "NotCreated", "")),
        ("NetworkReady", ("Unknown", "NotRunning", "")),
        ("Running", ("False", "NotStarted", "")),
        ("GuestReady", ("False", "NotRunning", "")),
        ("RestartRequired", ("False", "UpToDate", "")),
        ("Completed", ("False", "NotCompleted", "")),
        ("Ready", ("False", reason, message)),
    ]
    .map(|(type_, (status, reason, message))| condition(before, type_, status, reason, message, generation));
    serde_json::json!({"observedGeneration": generation, "conditions": conditions})
}

/// Whether a VM's status is this one already.
pub(crate) fn says(vm: &VirtualMachine, status: &serde_json::Value) -> bool {
    let there = vm.status.as_ref().and_then(|status| serde_json::to_value(status).ok());
    there.is_some_and(|there| {
        ["observedGeneration", "conditions"]
            .iter()
            .all(|key| there[key] == status[key])
    })
}

/// A condition, dated from the one before when its status is the same.
pub(crate) fn condition(
    before: &[Condition],
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
) -> Condition {
    let last_transition_time = match before.iter().find(|c| c.type_ == type_ && c.status == status) {
        Some(before) => before.last_transition_time.clone(),
        None => Time(
            jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or(jiff::Timestamp::UNIX_EPOCH),
        ),
    };
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.chars().take(1000).collect(),
        observed_generation: generation,
        last_transition_time,
    }
}
