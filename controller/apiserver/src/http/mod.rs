//! Requests: paths, parameters, content negotiation.

pub mod accept;
pub mod path;
pub mod query;
