//! Machines whose VM is gone from the API.
//!
//! Unknown is not dead: an empty cache, an unreachable API or a CRD that is not served says nothing. A
//! machine is an orphan only when a live GET of its name answers a typed NotFound, or another uid. Then
//! it is stopped gracefully; its disk is kept for [`QUARANTINE`] and removed only after that.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kube::api::ListParams;
use kube::{Api, ResourceExt};
use vmlet_crds::VirtualMachine;
use vmlet_machines::{Goal, Phase};

use crate::dereference::interest;
use crate::memory::Record;
use crate::reconcile::Context;

/// How long the disk of an orphan is kept.
pub const QUARANTINE: Duration = Duration::from_secs(24 * 3600);
/// How long an orphan gets to shut down.
const GRACE: Duration = Duration::from_secs(30);

/// What to do about a machine whose VM may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Its VM is there, or that cannot be told.
    LeaveAlone,
    /// Its VM was thought gone, and is there.
    TakeBack,
    /// Its VM is gone since now.
    Quarantine,
    /// Its VM is gone; its disk is kept.
    Keep,
    /// Its VM is gone for long enough.
    Remove,
}

/// Pure: `gone` is what the API says (None: it says nothing), `since` when it said so first, in unix seconds.
fn judge(gone: Option<bool>, since: Option<u64>, now: u64) -> Verdict {
    match (gone, since) {
        (None, _) | (Some(false), None) => Verdict::LeaveAlone,
        (Some(false), Some(_)) => Verdict::TakeBack,
        (Some(true), None) => Verdict::Quarantine,
        (Some(true), Some(since)) if now.saturating_sub(since) < QUARANTINE.as_secs() => Verdict::Keep,
        (Some(true), Some(_)) => Verdict::Remove,
    }
}

/// Looks at every machine on the node, and at every record: one may be left when its machine is deleted.
pub async fn sweep(cx: &Context) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    let recorded = cx.records.uids().unwrap_or_else(|error| {
        tracing::warn!(%error, "records cannot be listed");
        Vec::new()
    });
    let uids: BTreeSet<String> = cx.machines.list().into_iter().chain(recorded).collect();
    for uid in uids {
        let Some(record) = cx.records.load(&uid) else {
            tracing::warn!(uid, "a machine has no record of its virtual machine; it is left alone");
            continue;
        };
        look_at(cx, &uid, record, now).await;
    }
}

async fn look_at(cx: &Context, uid: &str, mut record: Record, now: u64) {
    let gone = is_gone(cx, uid, &record).await;
    match judge(gone, record.orphan_since, now) {
        Verdict::LeaveAlone => {}
        Verdict::TakeBack => {
            record.orphan_since = None;
            store(cx, uid, &record);
        }
        Verdict::Quarantine => {
            tracing::warn!(uid, vm = %format!("{}/{}", record.namespace, record.name), "the virtual machine is gone from the API; its machine is stopped and its disk kept for a day");
            record.orphan_since = Some(now);
            // Without the note the day would begin anew at each look, which harms nothing.
            store(cx, uid, &record);
            cx.machines.apply(uid, Goal::Stop { grace: GRACE });
        }
        Verdict::Keep => cx.machines.apply(uid, Goal::Stop { grace: GRACE }),
        Verdict::Remove => remove(cx, uid).await,
    }
}

/// Whether the API says that a VM is gone; None: it does not say.
async fn is_gone(cx: &Context, uid: &str, record: &Record) -> Option<bool> {
    let api: Api<VirtualMachine> = Api::namespaced(cx.client.clone(), &record.namespace);
    match api.get(&record.name).await {
        Ok(found) => Some(found.uid().as_deref() != Some(uid)),
        Err(kube::Error::Api(status)) if names_the_object(&status, &record.name) => {
            // Only while the CRD is served does that mean something: one that is being put back knows no VM.
            let served = api.list(&ListParams::default().limit(1)).await.is_ok();
            served.then_some(true)
        }
        Err(error) => {
            tracing::debug!(uid, %error, "cannot tell whether a virtual machine still exists");
            None
        }
    }
}

/// Removes a machine whose quarantine is over. Its pins and its record go last: what lives keeps its base.
async fn remove(cx: &Context, uid: &str) {
    tracing::warn!(
        uid,
        "the quarantine of an orphaned machine is over; its disk is removed"
    );
    let phase = cx.machines.observe(uid).map(|o| o.phase);
    if !matches!(phase, None | Some(Phase::Deleted)) {
        cx.machines.apply(uid, Goal::Delete { grace: GRACE });
        return;
    }
    if let Err(error) = cx.dereferencer.artifacts.unpin(&interest(uid)).await {
        tracing::warn!(uid, %error, "pins could not be removed; tried again");
        return;
    }
    if let Err(error) = cx.records.remove(uid) {
        tracing::warn!(uid, %error, "record could not be removed; tried again");
        return;
    }
    crate::reconcile::forget(uid, cx);
}

/// A 404 says that the object is gone only if it speaks of the object: a server that does not serve the
/// CRD answers 404 too, without naming it.
fn names_the_object(status: &kube::core::Status, name: &str) -> bool {
    status.reason == "NotFound" && status.details.as_ref().is_some_and(|d| d.name == name)
}

fn store(cx: &Context, uid: &str, record: &Record) {
    if let Err(error) = cx.records.store(uid, record) {
        tracing::warn!(uid, %error, "record could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_of_the_api_never_counts_and_a_disk_is_kept_for_a_day() {
        let day = QUARANTINE.as_secs();
        for (gone, since, now, verdict) in [
            (None, None, 9, Verdict::LeaveAlone),
            (None, Some(1), 9 * day, Verdict::LeaveAlone),
            (Some(false), None, 9, Verdict::LeaveAlone),
            (Some(false), Some(1), 9, Verdict::TakeBack),
            (Some(true), None, 9, Verdict::Quarantine),
            (Some(true), Some(1), day, Verdict::Keep),
            (Some(true), Some(1), day + 1, Verdict::Remove),
            (Some(true), Some(5), 1, Verdict::Keep),
        ] {
            assert_eq!(judge(gone, since, now), verdict, "{gone:?} {since:?} {now}");
        }
    }

    #[test]
    fn a_404_of_a_server_without_the_crd_makes_no_orphan() {
        let typed: kube::core::Status = serde_json::from_value(serde_json::json!({
            "status": "Failure", "reason": "NotFound", "code": 404,
            "message": "virtualmachines.vmlet.dev \"a\" not found", "details": {"name": "a", "group": "vmlet.dev", "kind": "virtualmachines"}
        }))
        .expect("a status");
        let untyped: kube::core::Status = serde_json::from_value(serde_json::json!({
            "status": "Failure", "reason": "NotFound", "code": 404, "message": "404 page not found"
        }))
        .expect("a status");
        assert!(names_the_object(&typed, "a"));
        assert!(!names_the_object(&typed, "b"));
        assert!(!names_the_object(&untyped, "a"));
    }
}
