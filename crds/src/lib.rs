//! The API types of the group `vmlet.dev`, version `v1alpha1`.
//!
//! Four kinds: [`VirtualMachine`], [`Image`] and [`Kernel`] are namespaced and written by users;
//! [`VMNode`] is cluster-scoped and written by the agent of the node it is named after. The CRDs
//! in `crds/yaml` are generated from these types by `vmlet crds`; a test holds them equal.
//!
//! Every status field has one writer: see the table in `ARCHITECTURE.md`.

#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns of one kind say the same of their type, each for itself"
)]

mod image;
mod kernel;
mod next_try;
mod node;
mod pull_secrets;
mod quantity;
mod reference;
mod schema;
mod secret_waits;
mod source;
mod vm;

pub use image::*;
pub use kernel::*;
pub use next_try::*;
pub use node::*;
pub use pull_secrets::*;
pub use quantity::*;
pub use reference::*;
pub use secret_waits::*;
pub use source::*;
pub use vm::*;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The API group of all kinds.
pub const GROUP: &str = "vmlet.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";
/// The finalizer that a node's agent holds on a VirtualMachine while the machine has anything on the node.
pub const FINALIZER: &str = "vmlet.dev/machine";

/// All CRDs, in the order in which they should be applied.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![Kernel::crd(), Image::crd(), VirtualMachine::crd(), VMNode::crd()]
}

/// All CRDs as one stream of YAML documents, as `vmlet crds` prints it.
///
/// # Errors
/// Only if a generated schema cannot be written as YAML, which a test rules out.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser_error::Error> {
    serde_saphyr::to_string(crd)
}

/// A JSON patch (RFC 6902) that replaces the whole status of the object with this uid, and of no other.
///
/// Server-side apply would not do: kube-apiserver ignores `metadata.uid` in an apply to the status
/// subresource, so a late status would land on a recreated object of the same name.
///
/// # Errors
/// Only if the status is not JSON, which derived types rule out.
pub fn status_patch(uid: &str, status: &impl serde::Serialize) -> Result<json_patch::Patch, serde_json::Error> {
    serde_json::from_value(serde_json::json!([
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "add", "path": "/status", "value": status},
    ]))
}

/// An error of the API in words for a log or a terminal: the server's own message, or what is deepest in the way to it.
/// kube's texts are for programmers: they hold a `Status` as Rust prints it, and name layers of the client.
pub fn in_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Service(_) | kube::Error::HyperError(_) => {
            let mut cause: &dyn std::error::Error = error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            format!("no answer: {cause}")
        }
        error => error.to_string(),
    }
}

/// Whether an error of a [`status_patch`] says that the object is gone, or another one of its name is there.
pub fn is_another_object(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found() || status.is_conflict() || status.is_invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_words() {
        let status =
            serde_json::json!({"status": "Failure", "code": 403, "message": "it is forbidden", "reason": "Forbidden"});
        let status = serde_json::from_value(status).expect("a status");
        assert_eq!(in_words(&kube::Error::Api(Box::new(status))), "it is forbidden");
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let silent = in_words(&kube::Error::Service(Box::new(refused)));
        assert_eq!(silent, "no answer: connection refused");
    }

    #[test]
    fn a_status_reaches_the_object_that_it_was_made_for_and_no_other() {
        let patch = status_patch("u-1", &serde_json::json!({"a": 1})).expect("a patch");
        let mut same = serde_json::json!({"metadata": {"uid": "u-1"}, "status": {"old": true}});
        json_patch::patch(&mut same, &patch).expect("the same object");
        assert_eq!(same["status"], serde_json::json!({"a": 1}));
        let mut other = serde_json::json!({"metadata": {"uid": "u-2"}});
        assert!(json_patch::patch(&mut other, &patch).is_err());
    }
}
