//! What this agent wrote last of each VM, so that a status by somebody else is told from its own in the watch.
//!
//! An agent is the one writer of its VMs' status. One by another would otherwise stand until something else wakes the
//! agent, and `vmlet ssh` believes the host key in it.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use vmlet_crds::{VirtualMachine, VirtualMachineStatus};

/// The last writes, by uid.
#[derive(Debug, Default)]
pub struct OwnWrites(Mutex<HashMap<String, Last>>);

#[derive(Debug, Default)]
struct Last {
    /// Hashes of the status: of all of it, and without its conditions.
    status: Option<[u64; 2]>,
    /// The version that the API gave the object for the last write.
    version: u64,
}

impl OwnWrites {
    /// This status is what is to stand. Said before it is written: the watch may be faster than the answer.
    pub fn stands(&self, uid: &str, status: &VirtualMachineStatus) {
        self.last().entry(uid.to_owned()).or_default().status = hashes(Some(status));
    }

    /// A write of this object was answered so. What the watch tells of earlier versions is past.
    pub fn answered(&self, object: &VirtualMachine) {
        if let Some(uid) = object.uid() {
            let mut last = self.last();
            let last = last.entry(uid).or_default();
            last.version = last.version.max(version(object));
        }
    }

    /// The VM is gone.
    pub fn forget(&self, uid: &str) {
        self.last().remove(uid);
    }

    /// Whether the status of what the watch told is somebody else's.
    pub fn is_foreign(&self, object: &VirtualMachine) -> bool {
        let last = self.last();
        let Some(last) = object
            .uid()
            .and_then(|uid| last.get(&uid).map(|l| (l.status, l.version)))
        else {
            return false;
        };
        let (Some(own), there) = (last.0, hashes(object.status.as_ref())) else {
            return false;
        };
        if version(object) <= last.1 || there == Some(own) {
            return false;
        }
        // While the node counts as lost its conditions are the controller's; when the agent is back it looks at all.
        let lost = |status: &VirtualMachineStatus| status.conditions.iter().any(|c| c.reason == "NodeLost");
        !(object.status.as_ref().is_some_and(lost) && there.map(|there| there[1]) == Some(own[1]))
    }

    fn last(&self) -> MutexGuard<'_, HashMap<String, Last>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Versions are opaque by their definition, and numbers that grow in every API server. One that is none is never past.
fn version(object: &VirtualMachine) -> u64 {
    let version = object.resource_version().and_then(|version| version.parse().ok());
    version.unwrap_or(u64::MAX)
}

/// To the precision of what is stored.
fn hashes(status: Option<&VirtualMachineStatus>) -> Option<[u64; 2]> {
    let mut value = serde_json::to_value(status).ok()?;
    let hash = |value: &serde_json::Value| {
        let mut hasher = DefaultHasher::new();
        value.to_string().hash(&mut hasher);
        hasher.finish()
    };
    let whole = hash(&value);
    if let Some(fields) = value.as_object_mut() {
        fields.remove("conditions");
    }
    Some([whole, hash(&value)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(version: &str, status: serde_json::Value) -> VirtualMachine {
        let object = json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "VirtualMachine", "spec": {"imageRef": {"name": "i"}},
            "metadata": {"name": "a", "uid": "u", "resourceVersion": version}, "status": status});
        serde_json::from_value(object).expect("a VM")
    }

    fn status(ready: &str, count: i32) -> serde_json::Value {
        json!({"restartCount": count, "conditions": [{"type": "Ready", "status": "Unknown", "reason": ready, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
    }

    #[test]
    fn a_status_that_this_agent_did_not_write_last_is_foreign() {
        let writes = OwnWrites::default();
        let own = told("5", status("Booting", 1));
        assert!(!writes.is_foreign(&told("4", status("x", 9))), "nothing is known yet");
        writes.stands("u", own.status.as_ref().expect("a status"));
        assert!(!writes.is_foreign(&own), "before the answer is there");
        writes.answered(&own);
        assert!(!writes.is_foreign(&own));
        assert!(!writes.is_foreign(&told("4", status("Starting", 1))), "is past");
        assert!(
            !writes.is_foreign(&told("6", status("Booting", 1))),
            "a change of the spec"
        );
        assert!(writes.is_foreign(&told("6", status("Booting", 55))));
        assert!(writes.is_foreign(&told("6", serde_json::Value::Null)), "taken away");
        writes.forget("u");
        assert!(!writes.is_foreign(&told("6", status("Booting", 55))));
    }

    #[test]
    fn the_controllers_word_on_a_lost_node_is_left_to_it_and_nothing_beside_it() {
        let writes = OwnWrites::default();
        let own = told("5", status("Booting", 1));
        writes.stands("u", own.status.as_ref().expect("a status"));
        writes.answered(&own);
        assert!(!writes.is_foreign(&told("6", status("NodeLost", 1))));
        assert!(writes.is_foreign(&told("6", status("NodeLost", 55))));
    }
}
