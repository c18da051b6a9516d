//! What one image may use up, over all its layers.

use std::io;

use tokio_util::sync::CancellationToken;

use super::LayerError;
use super::member::{Member, MemberKind};
use crate::error::PullError;
use crate::types::Limits;

/// What an extended attribute takes in memory beside its name and its value: two records of 24 bytes, two pieces of the
/// heap with what they are rounded up to, and the note of where its value is on the disk.
const PER_XATTR: usize = 128;
/// What a directory, or a target that has no room in its inode, takes on the disk at least.
const BLOCK: u64 = 4096;
/// Targets of symbolic links that have room in the inode are shorter.
const IN_INODE: usize = 60;

/// Components that are walked for each entry there may be, those of links' targets included. Ordinary paths have ten, and
/// 40 links of 4095 bytes each would be 80,000 for one entry.
const STEPS_PER_ENTRY: u64 = 128;
/// How often it is asked whether anybody still wants the result.
const STEPS_PER_LOOK: u64 = 1 << 12;

/// What is left of an image's bounds. Nothing is ever given back: what a later layer hides was held, too.
pub struct Budget {
    most_entries: u64,
    entries: u64,
    most_metadata: u64,
    metadata: u64,
    most_disk: u64,
    disk: u64,
    most_steps: u64,
    steps: u64,
    cancel: CancellationToken,
}

impl Budget {
    /// All that `limits` allow, until `cancel` fires.
    pub fn new(limits: &Limits, cancel: &CancellationToken) -> Budget {
        let steps = limits.entries.saturating_mul(STEPS_PER_ENTRY);
        Budget {
            most_entries: limits.entries,
            entries: limits.entries,
            most_metadata: limits.metadata_bytes,
            metadata: limits.metadata_bytes,
            most_disk: limits.uncompressed_bytes,
            disk: limits.uncompressed_bytes,
            most_steps: steps,
            steps,
            cancel: cancel.clone(),
        }
    }

    /// Takes one directory that only a path implies, and its name.
    ///
    /// # Errors
    /// It is too much.
    pub fn implied(&mut self, name: &[u8]) -> Result<(), LayerError> {
        self.entry()?;
        self.metadata(name.len())?;
        self.disk(BLOCK)
    }

    /// Takes one entry of a layer.
    ///
    /// # Errors
    /// There are too many.
    pub fn entry(&mut self) -> Result<(), LayerError> {
        let most = self.most_entries;
        let too_many = || {
            LayerError::TooLarge(format!(
                "the image has more than {most} entries (implied directories count)"
            ))
        };
        self.entries = self.entries.checked_sub(1).ok_or_else(too_many)?;
        Ok(())
    }

    /// Takes what is kept in memory of a member until the image is finished, and what it takes on the disk but for its
    /// content and its extended attributes.
    ///
    /// # Errors
    /// It is too much.
    pub fn member(&mut self, member: &Member) -> Result<(), LayerError> {
        let target = match &member.kind {
            MemberKind::HardLink(target) | MemberKind::Symlink(target) => target.len(),
            _ => 0,
        };
        let xattrs = member
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len() + PER_XATTR);
        self.metadata(member.name.len() + target + xattrs.sum::<usize>())?;
        match member.kind {
            MemberKind::Directory => self.disk(BLOCK),
            MemberKind::Symlink(_) if target >= IN_INODE => self.disk(BLOCK),
            _ => Ok(()),
        }
    }

    /// Takes bytes of the disk.
    ///
    /// # Errors
    /// They are too many.
    pub fn disk(&mut self, bytes: u64) -> Result<(), LayerError> {
        let most = self.most_disk;
        let too_many = || {
            LayerError::TooLarge(format!(
                "the image takes more than {most} bytes on the disk, where each file, directory, long link and attribute is rounded up to blocks of {BLOCK}"
            ))
        };
        self.disk = self.disk.checked_sub(bytes).ok_or_else(too_many)?;
        Ok(())
    }

    fn metadata(&mut self, bytes: usize) -> Result<(), LayerError> {
        let most = self.most_metadata;
        let too_many = || {
            let what = "paths, link targets and extended attributes";
            LayerError::TooLarge(format!("the image has more than {most} bytes of {what}"))
        };
        self.metadata = self.metadata.checked_sub(bytes as u64).ok_or_else(too_many)?;
        Ok(())
    }

    /// Takes one component of a path that is walked.
    ///
    /// # Errors
    /// There are too many, or nobody wants the result any more.
    pub fn step(&mut self) -> Result<(), LayerError> {
        let most = self.most_steps;
        let too_many = || {
            let what = "components of paths and links are walked to find the image's directories";
            LayerError::TooLarge(format!("more than {most} {what}"))
        };
        self.steps = self.steps.checked_sub(1).ok_or_else(too_many)?;
        if self.steps.is_multiple_of(STEPS_PER_LOOK) {
            wanted(&self.cancel).map_err(LayerError::Read)?;
        }
        Ok(())
    }
}

/// An error when nobody wants the result any more.
pub fn wanted(cancel: &CancellationToken) -> io::Result<()> {
    match cancel.is_cancelled() {
        true => Err(io::Error::other(PullError::cancelled())),
        false => Ok(()),
    }
}

impl Default for Budget {
    fn default() -> Self {
        Budget::new(&Limits::default(), &CancellationToken::new())
    }
}
