//! The guest init and what host and guest say to each other
