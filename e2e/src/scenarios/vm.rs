//! What a virtual machine's object says, in the words that scenarios ask with.

use anyhow::{Result, bail, ensure};
use kube::ResourceExt;
use vmlet_crds::{Termination, VirtualMachine};

/// Status ("True"), reason and message of a condition; "Unknown" without a reason when it is not there yet.
pub fn condition<'a>(vm: &'a VirtualMachine, type_: &str) -> (&'a str, &'a str, &'a str) {
    vm.status
        .iter()
        .flat_map(|status| &status.conditions)
        .find(|c| c.type_ == type_)
        .map_or(("Unknown", "", ""), |c| (&c.status, &c.reason, &c.message))
}

/// Whether a condition is True.
pub fn is(vm: &VirtualMachine, type_: &str) -> bool {
    condition(vm, type_).0 == "True"
}

/// Boot id of the guest.
pub fn boot_id(vm: &VirtualMachine) -> Option<&str> {
    vm.status.as_ref()?.boot_id.as_deref()
}

/// How it last ended.
pub fn termination(vm: &VirtualMachine) -> Option<&Termination> {
    vm.status.as_ref()?.last_termination.as_ref()
}

/// Whether the guest is ready. An end that nobody asked for is an error.
pub fn ready(vm: &VirtualMachine) -> Result<bool> {
    if let Some(end) = termination(vm)
        && !matches!(end.reason.as_str(), "Stopped" | "ForcedKill")
        && !is(vm, "Running")
    {
        bail!("it has ended: {} {:?} {}", end.reason, end.exit_code, end.message);
    }
    Ok(is(vm, "Ready"))
}

/// Whether its one run is over; it must have ended with this exit code.
pub fn completed(vm: &VirtualMachine, code: i32) -> Result<bool> {
    if !is(vm, "Completed") {
        return Ok(false);
    }
    let end = termination(vm);
    let got = end.and_then(|end| end.exit_code);
    ensure!(
        got == Some(code),
        "it has ended with {got:?} instead of {code}: {end:?}"
    );
    Ok(true)
}

/// One line.
pub fn words(vm: &VirtualMachine) -> String {
    let mut text = vm.name_any();
    if vm.metadata.deletion_timestamp.is_some() {
        text += " (being deleted)";
    }
    let Some(status) = &vm.status else {
        return text + " no status";
    };
    for c in &status.conditions {
        let dull = matches!(
            (c.type_.as_str(), c.status.as_str()),
            ("Scheduled", "True") | ("RestartRequired" | "Completed", "False")
        );
        if !dull {
            text += &format!(" {}={}/{}", c.type_, c.status, c.reason);
        }
    }
    if let Some(message) = status
        .conditions
        .iter()
        .find(|c| c.type_ == "Ready")
        .map(|c| &c.message)
        && !message.is_empty()
    {
        text += &format!(" ({message})");
    }
    if let Some(end) = &status.last_termination {
        text += &format!(" last={}/{:?}", end.reason, end.exit_code);
    }
    if status.restart_count > 0 {
        text += &format!(" restarts={}", status.restart_count);
    }
    text
}
