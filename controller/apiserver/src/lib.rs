//! The embedded single-node Kubernetes-style API
