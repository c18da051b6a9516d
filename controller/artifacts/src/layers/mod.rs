//! Layers under the OCI rules.
