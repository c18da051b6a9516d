#![doc = include_str!("../README.md")]

mod acl;
mod alloc;
mod checksum;
mod checksums;
mod directory;
mod dirhash;
mod error;
mod extent;
mod finish;
mod groups;
mod inode;
mod layout;
mod numbering;
mod options;
mod output;
mod summary;
mod superblock;
mod time;
mod tree;
mod writer;
mod xattr;

pub use acl::{AclMode, acl_mode};
pub use checksums::Checksums;
pub use error::Error;
pub use layout::{MAX_SIZE, MIN_SIZE};
pub use numbering::LOST_AND_FOUND;
pub use options::{FreeSpace, Options, Size};
pub use summary::Summary;
pub use time::Timestamp;
pub use tree::{Attributes, Inode, Kind, MAX_LINKS, MAX_NAME, MAX_TARGET, NodeId, Tree};
pub use writer::{FileData, FileWriter, Writer};
pub use xattr::check as check_xattrs;
