//! The embedded single-node Kubernetes-style API

mod core;
mod discovery;
mod http;
pub mod managed_fields;
pub mod names;
mod openapi;
pub mod patch;
pub mod protobuf;
mod registry;
mod reviews;
pub mod schema;
pub mod selector;
mod status;
mod storage;
mod table;
