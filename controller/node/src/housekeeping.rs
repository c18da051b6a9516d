//! What is on the node's disk and nobody needs: pins whose VM is gone, records of such that were set aside, images and
//! kernels that were not used for long. On a disk that is nearly full, "long" becomes short.
//!
//! Unknown is not dead: a pin falls only if its VM is in no watch, no record and no machine's directory.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::Store;
use tokio_util::sync::CancellationToken;
use vmlet_artifacts::store::{Policy, Space};
use vmlet_artifacts::types::{ArtefactKind, Cached, Interest};
use vmlet_crds::VirtualMachine;

use crate::agent::NodeCondition;
use crate::dereference::VM_PREFIX;
use crate::reconcile::{Context, record};

/// How often the free space is looked at.
const LOOK: Duration = Duration::from_secs(60);
/// How often a disk with space enough is tidied, in looks.
const TIDY: u32 = 60;
/// Unused images and kernels go when they are `keep_unused` old, and on a nearly full disk (85 % in use) the
/// least recently used first, until there is room again (80 %).
pub fn policy(keep_unused: Duration) -> Policy {
    Policy {
        max_age: Some(keep_unused),
        ..Policy::default()
    }
}

/// Pins of VMs that nobody knows: neither the API's watch, nor a record, nor a machine's directory.
pub fn stale(pinners: Vec<Interest>, known: &BTreeSet<String>) -> Vec<Interest> {
    pinners
        .into_iter()
        .filter(|who| who.0.strip_prefix(VM_PREFIX).is_some_and(|uid| !known.contains(uid)))
        .collect()
}

/// VMNode's word on its disk.
pub fn condition(dir: &Path, space: Space, policy: &Policy) -> NodeCondition {
    let low = policy.wanted(space) > 0;
    let message = if low {
        format!(
            "{} MiB of {} MiB are free below {}: free some space, or delete virtual machines, images and kernels; what nobody uses is removed already",
            space.free >> 20,
            space.total >> 20,
            dir.display()
        )
    } else {
        String::new()
    };
    NodeCondition {
        type_: "DiskPressure".to_owned(),
        holds: low,
        reason: if low { "LowSpace" } else { "EnoughSpace" }.to_owned(),
        message,
    }
}

/// What was removed, in one sentence; None if nothing was.
pub fn told(removed: &[Cached]) -> Option<String> {
    if removed.is_empty() {
        return None;
    }
    let count = |kind| removed.iter().filter(|c| c.kind == kind).count();
    let bytes: u64 = removed.iter().map(|c| c.allocated_bytes).sum();
    let mut names: Vec<&str> = removed.iter().map(|c| c.source.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    Some(format!(
        "Removed {} images and {} kernels that nobody used, {} MiB: {}",
        count(ArtefactKind::Image),
        count(ArtefactKind::Kernel),
        bytes >> 20,
        names.join(", ")
    ))
}

/// The VMs of this node as the API tells them.
pub struct Known {
    /// The store of the watch.
    pub vms: Store<VirtualMachine>,
    /// Cancelled once the store holds all of them.
    pub listed: CancellationToken,
}

/// Keeps the disk tidy until `shutdown`, from when all VMs are known.
pub async fn run(cx: &Context, known: Known, dir: &Path, keep_unused: Duration, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = known.listed.cancelled() => {}
    }
    let policy = policy(keep_unused);
    let mut looks = 0_u32;
    loop {
        match cx.dereferencer.artifacts.space().await {
            Ok(space) => {
                *cx.disk.lock().unwrap_or_else(PoisonError::into_inner) = Some(condition(dir, space, &policy));
                if looks.is_multiple_of(TIDY) || policy.wanted(space) > 0 {
                    forget_stale(cx, &known.vms).await;
                    collect(cx, policy.clone()).await;
                }
            }
            Err(error) => tracing::warn!(dir = %dir.display(), %error, "the free space cannot be told"),
        }
        looks = looks.wrapping_add(1);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn forget_stale(cx: &Context, vms: &Store<VirtualMachine>) {
    let recorded = match cx.records.uids() {
        Ok(uids) => uids,
        Err(error) => {
            tracing::warn!(%error, "records cannot be listed; all that is of virtual machines stays");
            return;
        }
    };
    let known: BTreeSet<String> = vms
        .state()
        .iter()
        .filter_map(|vm| vm.uid())
        .chain(recorded)
        .chain(cx.machines.list())
        .collect();
    for uid in cx.records.set_aside().unwrap_or_default() {
        if !known.contains(&uid)
            && let Err(error) = cx.records.remove(&uid)
        {
            tracing::warn!(uid, %error, "a damaged record could not be removed; tried again");
        }
    }
    let artifacts = &cx.dereferencer.artifacts;
    for who in stale(artifacts.pinners().await, &known) {
        match artifacts.unpin(&who).await {
            Ok(()) => tracing::info!(
                who = who.0,
                "let go of what a virtual machine used that nobody knows any more"
            ),
            Err(error) => tracing::warn!(who = who.0, %error, "a pin could not be removed; tried again"),
        }
    }
}

async fn collect(cx: &Context, policy: Policy) {
    match cx.dereferencer.artifacts.collect_by(policy).await {
        Ok(removed) => {
            let Some(note) = told(&removed) else { return };
            tracing::info!("{note}");
            let node = cx.node_object.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(node) = node {
                let event = Event {
                    type_: EventType::Normal,
                    reason: "Collected".to_owned(),
                    note: Some(crate::status::truncated(note, crate::events::MAX_NOTE)),
                    action: "Collecting".to_owned(),
                    secondary: None,
                };
                record(cx, &event, &node).await;
            }
        }
        Err(error) => tracing::warn!(%error, "unused images and kernels could not be removed; tried again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn a_pin_falls_only_if_its_vm_is_known_to_nobody() {
        let pins = ["vm/a", "vm/b", "eager/c"].map(|p| Interest(p.to_owned())).to_vec();
        let known = BTreeSet::from(["a".to_owned()]);
        assert_eq!(stale(pins, &known), [Interest("vm/b".to_owned())]);
    }

    #[tokio::test]
    async fn a_damaged_record_goes_with_its_vm() {
        let world = crate::visits::world::World::new().await;
        let dir = world.dir.path().join("node/vms");
        for uid in ["there", "gone"] {
            std::fs::write(dir.join(format!("{uid}.damaged")), "{\"hostKeySeed\": \"x").expect("writes");
        }
        let (vms, mut writer) = kube::runtime::reflector::store();
        let mut vm = VirtualMachine::new("a", vmlet_crds::VirtualMachineSpec::default());
        vm.metadata.uid = Some("there".to_owned());
        writer.apply_watcher_event(&kube::runtime::watcher::Event::Apply(vm));
        forget_stale(&world.cx, &vms).await;
        assert_eq!(world.cx.records.set_aside().expect("lists"), ["there"]);
    }

    #[test]
    fn pressure_names_the_directory_and_what_to_do() {
        let week = Duration::from_secs(7 * 86400);
        let policy = policy(week);
        assert_eq!(policy.max_age, Some(week));
        let space = |free: u64| Space {
            free: free << 30,
            total: 100 << 30,
        };
        let low = condition(Path::new("/data"), space(1), &policy);
        assert!(
            low.holds
                && low
                    .message
                    .starts_with("1024 MiB of 102400 MiB are free below /data: free some space")
        );
        let fine = condition(Path::new("/data"), space(50), &policy);
        assert!(
            !fine.holds && fine.message.is_empty(),
            "no number that changes while all is well"
        );
    }

    #[test]
    fn a_collection_is_told_with_names_and_sizes() {
        assert_eq!(told(&[]), None);
        let cached = |kind, source: &str| Cached {
            kind,
            id: String::new(),
            digest: String::new(),
            source: source.to_owned(),
            allocated_bytes: 3 << 20,
            users: Vec::new(),
            last_used: SystemTime::UNIX_EPOCH,
        };
        let note = told(&[
            cached(ArtefactKind::Image, "r/b:1"),
            cached(ArtefactKind::Kernel, "r/a:1"),
        ]);
        assert_eq!(
            note.as_deref(),
            Some("Removed 1 images and 1 kernels that nobody used, 6 MiB: r/a:1, r/b:1")
        );
    }
}
