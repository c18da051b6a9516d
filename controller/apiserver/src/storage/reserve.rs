//! Space that is kept for the day when the disk is full, so that what frees space can still be written.
//!
//! A file beside the database whose blocks are allocated. It shrinks step by step when a write finds no room, and not at once:
//! whoever filled the disk would take all of it. It is made again as soon as the disk has room. Whether it has is asked by
//! allocating, not by statvfs(2), which knows neither quotas nor whose the file system's own reserve is.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// The greatest change is of an object of 3 MiB: 9 MiB of the write-ahead log (the object, and in the history how it is and how it
/// was), of which 6 MiB are new in the database, too, once the log is copied there. That is 15 MiB.
pub(super) const SIZE: u64 = 16 << 20;
/// What a write that finds no room takes.
const STEP: u64 = 1 << 20;
/// Room that must be left when the reserve is made again: the log before it is copied. Without it the next write would take
/// what was just made.
const MARGIN: u64 = 4 << 20;

pub(super) struct Reserve {
    path: PathBuf,
    /// Bytes that the file holds.
    left: u64,
    /// The disk is full: `left` is all there is.
    short: bool,
}

impl Reserve {
    /// Takes over what a run before this one left, and makes it whole if the disk has room.
    pub(super) fn open(dir: &Path) -> Reserve {
        let path = dir.join("reserve");
        // A copied file may have holes: what counts is what is allocated.
        let left = std::fs::metadata(&path).map_or(0, |m| m.len().min(m.blocks() * 512));
        let mut reserve = Reserve {
            path,
            left,
            short: false,
        };
        if left < SIZE {
            reserve.make();
        }
        reserve
    }

    /// Whether the disk is full. Looks whether it still is, if it was.
    pub(super) fn look(&mut self) -> bool {
        if self.short {
            self.make();
        }
        self.short
    }

    pub(super) fn short(&self) -> bool {
        self.short
    }

    /// Whole MiB that are left.
    pub(super) fn left_mib(&self) -> u64 {
        self.left >> 20
    }

    /// Gives a step of space to the file system; false when there is none left.
    pub(super) fn release(&mut self) -> bool {
        if !self.short {
            tracing::warn!(reserve = %self.path.display(), "the disk is full; only deletions and small changes are stored");
        }
        self.short = true;
        if self.left == 0 {
            return false;
        }
        let left = self.left.saturating_sub(STEP);
        // Synced, because some file systems give blocks away only after their own commit.
        let shrink = |file: File| file.set_len(left).and_then(|()| file.sync_all());
        match OpenOptions::new().write(true).open(&self.path).and_then(shrink) {
            Ok(()) => self.left = left,
            Err(error) => {
                tracing::warn!(reserve = %self.path.display(), %error, "the reserve cannot be used");
                self.left = 0;
            }
        }
        self.left == left
    }

    fn make(&mut self) {
        match self.allocate() {
            Ok(()) => {
                if self.short {
                    tracing::info!("the disk has room again");
                }
                self.left = SIZE;
                self.short = false;
            }
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                self.short = true
            }
            // Not for want of space: the database says what it finds itself.
            Err(error) => {
                tracing::warn!(reserve = %self.path.display(), %error, "no space is kept for a full disk");
                self.short = false;
            }
        }
    }

    fn allocate(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)?;
        let whole = match fallocate(&file, FallocateFlags::empty(), 0, SIZE + MARGIN) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => fill(&file, SIZE + MARGIN),
            Err(error) => Err(error.into()),
        };
        // What a failed allocation got is given back.
        file.set_len(if whole.is_ok() { SIZE } else { self.left })?;
        whole?;
        file.sync_all()
    }
}

/// For file systems that cannot allocate without writing.
fn fill(file: &File, size: u64) -> io::Result<()> {
    let zeros = [0; 64 << 10];
    for at in (0..size).step_by(zeros.len()) {
        file.write_all_at(&zeros, at)?;
    }
    Ok(())
}
