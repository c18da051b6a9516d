//! The node agent: reconcilers, status, events, metrics
