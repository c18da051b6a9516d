//! The streaming half: file data goes to its final place while it arrives.

use std::fs::File;

use crate::alloc::Allocator;
use crate::error::Error;
use crate::extent::{Extent, Extents};
use crate::finish;
use crate::layout::{BLOCK, BLOCK64};
use crate::options::{Options, Size};
use crate::output::Output;
use crate::summary::Summary;
use crate::tree::Tree;

/// Largest file in bytes: 2^32 - 1 blocks.
const MAX_FILE: u64 = (u32::MAX as u64) * BLOCK64;
/// Blocks of a content that is brought to the disk at once: 1 MiB. Holes are punched for what is discarded later, which is
/// cheap only as long as it was not written back; of large contents there are few.
const WRITTEN_BACK: u64 = 256;

/// Writes one image. Data first, in any order; the tree that names it at the end.
///
/// Memory does not grow with the data. Nothing that was written is read again. A writer that is dropped, or that fails to
/// finish, leaves an empty file.
#[derive(Debug)]
pub struct Writer {
    pub(crate) options: Options,
    pub(crate) output: Output,
    pub(crate) allocator: Allocator,
    /// Bytes of the layout, for messages.
    pub(crate) size: u64,
    /// Bytes that do not fill a block yet.
    partial: Vec<u8>,
}

impl Writer {
    /// Starts an image in `file`, which is emptied first.
    ///
    /// # Errors
    /// An impossible size or label, or a file that cannot be truncated.
    pub fn create(file: File, options: Options) -> Result<Writer, Error> {
        let layout = options.layout()?;
        let mut output = Output::new(file);
        output.set_len(0)?;
        if let Size::Fixed(bytes) = options.size {
            output.set_len(bytes)?;
        }
        Ok(Writer {
            allocator: Allocator::new(layout),
            size: u64::from(layout.blocks()) * BLOCK64,
            options,
            output,
            partial: Vec::with_capacity(BLOCK),
        })
    }

    /// Starts the content of a file. A content that is dropped before [`FileWriter::finish`] is discarded.
    ///
    /// # Errors
    /// None at present; the signature leaves room.
    pub fn begin_file(&mut self) -> Result<FileWriter<'_>, Error> {
        self.partial.clear();
        Ok(FileWriter {
            writer: self,
            extents: Extents::None,
            size: 0,
            blocks: 0,
            next: 0,
            complete: false,
        })
    }

    /// Gives the blocks of a content back: metadata will use them, and what remains becomes holes.
    ///
    /// # Errors
    /// None at present; the signature leaves room.
    pub fn discard(&mut self, data: FileData) -> Result<(), Error> {
        self.give_back(&data.extents);
        Ok(())
    }

    fn give_back(&mut self, extents: &Extents) {
        for extent in extents.as_slice() {
            self.allocator
                .give_back(extent.physical..extent.physical + extent.length);
        }
    }

    /// Writes all metadata for `tree` and makes the file durable: when this returns, the image is complete on disk.
    ///
    /// Contents that no name in the tree reaches are discarded.
    ///
    /// # Errors
    /// Duplicate names, content that does not fit, or an I/O error. The file is then empty.
    pub fn finish(self, tree: Tree) -> Result<Summary, Error> {
        self.finish_while(tree, &|| true)
    }

    /// The same for as long as `wanted` says so. It is asked for each directory, for every thousand inodes and before the
    /// last sync, which goes on to its end.
    ///
    /// # Errors
    /// As [`Writer::finish`]; [`Error::Abandoned`] once `wanted` has said no.
    pub fn finish_while(self, tree: Tree, wanted: &dyn Fn() -> bool) -> Result<Summary, Error> {
        finish::finish(self, tree, wanted)
    }

    /// One block for metadata.
    pub(crate) fn metadata_block(&mut self) -> Result<u32, Error> {
        match self.allocator.take_for_metadata(1) {
            Some(place) => Ok(place.start),
            None => Err(self.full()),
        }
    }

    pub(crate) fn full(&self) -> Error {
        Error::DoesNotFit { size: self.size }
    }
}

/// The content of a regular file that lies in the image and has no name yet.
///
/// It belongs to the writer that made it and is used in one [`crate::Kind::File`] or given to [`Writer::discard`]. The blocks
/// of one that is merely dropped come back when the image is finished.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FileData {
    pub(crate) size: u64,
    pub(crate) extents: Extents,
}

impl FileData {
    /// The content of an empty file.
    pub fn empty() -> FileData {
        FileData::default()
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that it takes on the disk, holes left out.
    pub fn allocated(&self) -> u64 {
        self.extents.blocks() * BLOCK64
    }
}

/// Takes in the content of one file.
#[derive(Debug)]
pub struct FileWriter<'w> {
    writer: &'w mut Writer,
    extents: Extents,
    size: u64,
    /// Blocks that were taken.
    blocks: u64,
    /// The block of the file that comes next.
    next: u32,
    complete: bool,
}

impl FileWriter<'_> {
    /// Appends bytes. Blocks of zeroes take no space.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] when the image is full, [`Error::FileTooLarge`], or an I/O error.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.grow(bytes.len() as u64)?;
        if !self.writer.partial.is_empty() {
            let missing = BLOCK - self.writer.partial.len();
            let (head, tail) = bytes.split_at(missing.min(bytes.len()));
            self.writer.partial.extend_from_slice(head);
            bytes = tail;
            if self.writer.partial.len() < BLOCK {
                return Ok(());
            }
            self.flush_partial()?;
        }
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % BLOCK);
        self.write_blocks(whole)?;
        self.writer.partial.extend_from_slice(rest);
        Ok(())
    }

    /// Appends `length` zero bytes without writing any.
    ///
    /// # Errors
    /// As for [`FileWriter::write`].
    pub fn hole(&mut self, length: u64) -> Result<(), Error> {
        self.grow(length)?;
        let mut left = length;
        if !self.writer.partial.is_empty() {
            let fill = ((BLOCK - self.writer.partial.len()) as u64).min(left);
            let filled = self.writer.partial.len() + fill as usize;
            self.writer.partial.resize(filled, 0);
            left -= fill;
            if filled < BLOCK {
                return Ok(());
            }
            self.flush_partial()?;
        }
        self.next += (left / BLOCK64) as u32;
        self.writer.partial.resize((left % BLOCK64) as usize, 0);
        Ok(())
    }

    /// Bytes that it takes on the disk so far: whole blocks, without the last one while that is not full.
    pub fn allocated(&self) -> u64 {
        self.blocks * BLOCK64
    }

    /// Ends the content.
    ///
    /// # Errors
    /// As for [`FileWriter::write`].
    pub fn finish(mut self) -> Result<FileData, Error> {
        if !self.writer.partial.is_empty() {
            self.writer.partial.resize(BLOCK, 0);
            self.flush_partial()?;
        }
        self.complete = true;
        if self.extents.blocks() >= WRITTEN_BACK {
            for extent in self.extents.as_slice() {
                let blocks = extent.physical..extent.physical + extent.length;
                self.writer.output.write_back(blocks);
            }
        }
        Ok(FileData {
            size: self.size,
            extents: std::mem::take(&mut self.extents),
        })
    }

    fn grow(&mut self, length: u64) -> Result<(), Error> {
        let size = self.size.saturating_add(length);
        if size > MAX_FILE {
            return Err(Error::FileTooLarge {
                size,
                maximum: MAX_FILE,
            });
        }
        self.size = size;
        Ok(())
    }

    /// Writes the gathered block, which is full.
    fn flush_partial(&mut self) -> Result<(), Error> {
        let mut block = std::mem::take(&mut self.writer.partial);
        let written = self.write_blocks(&block);
        block.clear();
        self.writer.partial = block;
        written
    }

    /// Writes whole blocks, leaving those of zeroes out.
    fn write_blocks(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let zeroes = bytes.chunks_exact(BLOCK).take_while(|b| is_zero(b)).count();
            self.next += zeroes as u32;
            bytes = &bytes[zeroes * BLOCK..];
            let filled = bytes.chunks_exact(BLOCK).take_while(|b| !is_zero(b)).count();
            let (run, rest) = bytes.split_at(filled * BLOCK);
            self.write_run(run)?;
            bytes = rest;
        }
        Ok(())
    }

    fn write_run(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let want = (bytes.len() / BLOCK).min(u32::MAX as usize) as u32;
            let Some(place) = self.writer.allocator.take(want) else {
                return Err(self.writer.full());
            };
            let length = place.len() as u32;
            // Noted before it is written, so that a failed write gives the blocks back as well.
            self.extents.push(Extent {
                logical: self.next,
                physical: place.start,
                length,
            });
            self.next += length;
            self.blocks += u64::from(length);
            let (now, rest) = bytes.split_at(length as usize * BLOCK);
            self.writer.output.write(place.start, now)?;
            bytes = rest;
        }
        Ok(())
    }
}

impl Drop for FileWriter<'_> {
    fn drop(&mut self) {
        if !self.complete {
            self.writer.give_back(&self.extents);
        }
    }
}

/// Whether a block holds nothing but zeroes; data differs early, so the first words decide nearly always.
pub(crate) fn is_zero(block: &[u8]) -> bool {
    block
        .chunks(64)
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
