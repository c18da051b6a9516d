//! The API types of the group `vmlet.dev`, version `v1alpha1`.
//!
//! Four kinds: [`VirtualMachine`], [`Image`] and [`Kernel`] are namespaced and written by users;
//! [`VMNode`] is cluster-scoped and written by the agent of the node it is named after. The CRDs
//! in `crds/yaml` are generated from these types by `vmlet crds`; a test holds them equal.
//!
//! Every status field has one writer: see the table in `ARCHITECTURE.md`.

mod image;
mod kernel;
mod node;
mod pull_secrets;
mod quantity;
mod reference;
mod schema;
mod source;
mod vm;

pub use image::*;
pub use kernel::*;
pub use node::*;
pub use pull_secrets::*;
pub use quantity::*;
pub use reference::*;
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
