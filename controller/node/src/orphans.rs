//! Machines whose VM is gone from the API.
//!
//! Unknown is not dead: an empty cache, an unreachable API or a CRD that is not served says nothing. A
//! machine is an orphan only when a live GET of its name answers a typed NotFound, or another uid. Then
//! it is stopped gracefully; its disk is kept for [`QUARANTINE`] and removed only after that.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kube::{Api, ResourceExt};
use vmlet_crds::VirtualMachine;
use vmlet_machines::Goal;

use crate::dereference::interest;
use crate::reconcile::Context;

/// How long the disk of an orphan is kept.
pub const QUARANTINE: Duration = Duration::from_secs(24 * 3600);
/// How long an orphan gets to shut down.
const GRACE: Duration = Duration::from_secs(30);

/// Looks at every machine on the node whose VM has not been seen.
pub async fn sweep(cx: &Context) {
    for uid in cx.machines.list() {
        let Some(mut record) = cx.records.load(&uid) else {
            tracing::warn!(uid, "a machine has no record of its virtual machine; it is left alone");
            continue;
        };
        let api: Api<VirtualMachine> = Api::namespaced(cx.client.clone(), &record.namespace);
        let gone = match api.get(&record.name).await {
            Ok(found) => found.uid().as_deref() != Some(uid.as_str()),
            Err(kube::Error::Api(status)) if status.is_not_found() => names_the_object(&status, &record.name),
            Err(error) => {
                tracing::debug!(uid, %error, "cannot tell whether a virtual machine still exists");
                false
            }
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        match (gone, record.orphan_since) {
            (false, None) => {}
            (false, Some(_)) => {
                record.orphan_since = None;
                store(cx, &uid, &record);
            }
            (true, None) => {
                tracing::warn!(uid, vm = %format!("{}/{}", record.namespace, record.name), "the virtual machine is gone from the API; its machine is stopped and its disk kept for a day");
                record.orphan_since = Some(now);
                store(cx, &uid, &record);
                cx.machines.apply(&uid, Goal::Stop { grace: GRACE });
            }
            (true, Some(since)) if now.saturating_sub(since) < QUARANTINE.as_secs() => {
                cx.machines.apply(&uid, Goal::Stop { grace: GRACE })
            }
            (true, Some(_)) => {
                tracing::warn!(
                    uid,
                    "the quarantine of an orphaned machine is over; its disk is removed"
                );
                cx.machines.apply(&uid, Goal::Delete { grace: GRACE });
                if let Err(error) = cx.dereferencer.artifacts.unpin(&interest(&uid)).await {
                    tracing::warn!(uid, %error, "pins could not be removed; tried again");
                    continue;
                }
                if let Err(error) = cx.records.remove(&uid) {
                    tracing::warn!(uid, %error, "record could not be removed");
                }
            }
        }
    }
}

/// A 404 says that the object is gone only if it speaks of the object: a server that does not serve the
/// CRD answers 404 too, without naming it.
fn names_the_object(status: &kube::core::Status, name: &str) -> bool {
    status.reason == "NotFound" && status.details.as_ref().is_some_and(|d| d.name == name)
}

fn store(cx: &Context, uid: &str, record: &crate::memory::Record) {
    if let Err(error) = cx.records.store(uid, record) {
        tracing::warn!(uid, %error, "record could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
