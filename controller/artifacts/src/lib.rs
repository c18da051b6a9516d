//! From a reference to a disk: registries, layers, the content store and keyed pulls.
//!
//! Nothing here knows of Kubernetes or of virtual machines. A caller asks `Artifacts` for an
//! image disk or a kernel and is told, without waiting, how far it is.

pub mod authfile;
mod credential_helper;
pub mod docker_config;
pub mod error;
pub mod facade;
pub mod kernel_package;
pub mod layers;
pub mod modules_index;
pub mod pipeline;
pub mod pulls;
pub mod reference;
pub mod registry;
mod scratch;
pub mod store;
pub mod types;
