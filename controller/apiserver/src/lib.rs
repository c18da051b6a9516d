//! The embedded single-node Kubernetes-style API

mod core;
mod http;
pub mod managed_fields;
pub mod names;
pub mod patch;
pub mod protobuf;
mod registry;
pub mod schema;
pub mod selector;
mod status;
mod storage;
