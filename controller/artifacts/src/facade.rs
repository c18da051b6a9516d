//! The handle that callers use.
