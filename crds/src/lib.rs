//! The API types of the group vmlet.dev
