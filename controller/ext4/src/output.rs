//! The file below: whole blocks in, few large writes out.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread::JoinHandle;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::checksums::Checksums;
use crate::error::Error;
use crate::layout::{BLOCK, BLOCK64};

/// Bytes gathered before they are written: files are small, and their blocks lie one behind another.
const GATHER: usize = 1 << 20;

/// Writes blocks of an image file.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    /// Gathered bytes, whole blocks.
    gathered: Vec<u8>,
    /// Block at which they begin.
    start: u32,
    /// Of all that was written, gathered bytes too.
    checksums: Checksums,
    /// A sync of what was written by then, under way on a thread of its own.
    syncing: Option<JoinHandle<io::Result<()>>>,
    /// Whether the image is whole and durable.
    complete: bool,
}

impl Output {
    pub(crate) fn new(file: File) -> Output {
        Output {
            file,
            gathered: Vec::new(),
            start: 0,
            checksums: Checksums::default(),
            syncing: None,
            complete: false,
        }
    }

    /// Writes whole blocks, beginning at `block`.
    pub(crate) fn write(&mut self, block: u32, bytes: &[u8]) -> Result<(), Error> {
        debug_assert!(bytes.len().is_multiple_of(BLOCK));
        self.checksums.note(block, bytes);
        let expected = self.start + (self.gathered.len() / BLOCK) as u32;
        if block != expected || self.gathered.len() + bytes.len() > GATHER {
            self.flush()?;
            self.start = block;
        }
        if bytes.len() >= GATHER / 4 && self.gathered.is_empty() {
            self.start = block + (bytes.len() / BLOCK) as u32;
            return self.write_at(u64::from(block) * BLOCK64, bytes);
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what is gathered.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let offset = u64::from(self.start) * BLOCK64;
        self.write_at(offset, &self.gathered)?;
        self.start += (self.gathered.len() / BLOCK) as u32;
        self.gathered.clear();
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(bytes, offset).map_err(Error::io("write"))
    }

    /// Makes blocks that may have been written read as zeroes again, and gives their space back where the file system
    /// below can do so.
    pub(crate) fn punch(&mut self, blocks: Range<u32>) -> Result<(), Error> {
        self.flush()?;
        self.checksums.forget(blocks.clone());
        let offset = u64::from(blocks.start) * BLOCK64;
        let length = blocks.len() as u64 * BLOCK64;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, length) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let zeroes = vec![0; GATHER.min(length as usize)];
                let mut done = 0;
                while done < length {
                    let step = (length - done).min(zeroes.len() as u64);
                    self.write_at(offset + done, &zeroes[..step as usize])?;
                    done += step;
                }
                Ok(())
            }
            Err(errno) => Err(Error::Io {
                action: "punch a hole into",
                source: io::Error::from(errno),
            }),
        }
    }

    /// Sets the length of the file in bytes.
    pub(crate) fn set_len(&mut self, bytes: u64) -> Result<(), Error> {
        self.flush()?;
        self.file.set_len(bytes).map_err(Error::io("set the length of"))
    }

    /// Lets what is written be brought to the disk while more is written. Its errors come with [`Output::sync`].
    pub(crate) fn sync_ahead(&mut self) -> Result<(), Error> {
        self.flush()?;
        let file = self.file.try_clone().map_err(Error::io("duplicate the handle of"))?;
        let thread = std::thread::Builder::new().name("ext4-sync".into());
        // Without a thread it is all done at the end.
        self.syncing = thread.spawn(move || file.sync_data()).ok();
        Ok(())
    }

    /// Makes everything durable, and tells what it is.
    pub(crate) fn sync(&mut self) -> Result<Checksums, Error> {
        self.flush()?;
        // An error of the disk is told to one sync only.
        self.synced_ahead().map_err(Error::io("sync"))?;
        self.file.sync_all().map_err(Error::io("sync"))?;
        self.complete = true;
        Ok(std::mem::take(&mut self.checksums))
    }

    fn synced_ahead(&mut self) -> io::Result<()> {
        let Some(thread) = self.syncing.take() else {
            return Ok(());
        };
        let panicked = |_| Err(io::Error::other("the syncing thread panicked"));
        thread.join().unwrap_or_else(panicked)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.complete {
            let _ = self.synced_ahead();
            // Half an image takes no space, and nothing takes it for a whole one.
            let _ = self.file.set_len(0);
        }
    }
}
