//! The pipeline: from a reference to files in a private directory.
