//! Kernels as OCI artefacts.
