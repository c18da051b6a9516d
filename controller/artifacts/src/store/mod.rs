//! The store: what is published, who uses it, and what was under way.
