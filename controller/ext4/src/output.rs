//! The file below: whole blocks in, few large writes out.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

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
    /// Whether the image is whole and durable.
    complete: bool,
}

impl Output {
    pub(crate) fn new(file: File) -> Output {
        Output {
            file,
            gathered: Vec::new(),
            start: 0,
            complete: false,
        }
    }

    /// Writes whole blocks, beginning at `block`.
    pub(crate) fn write(&mut self, block: u32, bytes: &[u8]) -> Result<(), Error> {
        debug_assert!(bytes.len().is_multiple_of(BLOCK));
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

    /// Makes everything durable.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        self.flush()?;
        self.file.sync_all().map_err(Error::io("sync"))?;
        self.complete = true;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.complete {
            // Half an image takes no space, and nothing takes it for a whole one.
            let _ = self.file.set_len(0);
        }
    }
}
