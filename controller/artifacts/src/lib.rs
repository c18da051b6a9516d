//! From a reference to a disk: registries, layers, the content store and keyed pulls.
//!
//! Nothing here knows of Kubernetes or of virtual machines. A caller asks [`Artifacts`] for an
//! image disk or a kernel and is told, without waiting, how far it is.
