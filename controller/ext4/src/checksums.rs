//! A checksum of each block, taken while it is written: a later look at the file can be compared with what was meant.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::layout::{BLOCK, BLOCK64};
use crate::writer::is_zero;

/// Blocks of one piece of the table.
const PIECE: u32 = 1024;
/// Bytes of a file that are read at a time.
const READ: usize = 256 * BLOCK;

/// The checksums of a file's blocks of 4096 bytes: CRC32c, as ext4's own. Blocks of zeros have none, written or not, so
/// holes and sizes cost nothing; the others take 4 bytes each.
///
/// They find damage. Against somebody who means harm they say nothing.
#[derive(Clone, Default)]
pub struct Checksums(BTreeMap<u32, Box<[u32; PIECE as usize]>>);

impl Checksums {
    /// Those of a file as it is now. A last block that is shorter counts as if zeros followed.
    ///
    /// # Errors
    /// Of reading. A file of 2^32 blocks or more is refused.
    pub fn of_file(file: &File) -> io::Result<Checksums> {
        let mut sums = Checksums::default();
        let size = file.metadata()?.len();
        let mut buffer = vec![0; READ];
        let mut at = 0;
        while at < size {
            at = match seek(file, SeekFrom::Data(at)) {
                Ok(data) => data / BLOCK64 * BLOCK64,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let block = u32::try_from(at / BLOCK64).map_err(|_| io::ErrorKind::FileTooLarge)?;
            let end = seek(file, SeekFrom::Hole(at))?.next_multiple_of(BLOCK64).min(size);
            let length = usize::try_from(end - at).unwrap_or(READ).min(READ);
            file.read_exact_at(&mut buffer[..length], at)?;
            let whole = length.next_multiple_of(BLOCK);
            buffer[length..whole].fill(0);
            sums.note(block, &buffer[..whole]);
            at += whole as u64;
        }
        Ok(sums)
    }

    /// Number and checksum of each block that is not all zeros, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().flat_map(|(piece, sums)| {
            let block = move |(at, sum): (usize, &u32)| (piece * PIECE + at as u32, *sum);
            sums.iter().enumerate().map(block).filter(|(_, sum)| *sum != 0)
        })
    }

    /// Notes whole blocks that were written, from `block` on; what was known of them is forgotten. Bytes that fill no
    /// block are left out.
    pub fn note(&mut self, block: u32, bytes: &[u8]) {
        for (after, bytes) in bytes.chunks_exact(BLOCK).enumerate() {
            let block = block + after as u32;
            let (piece, at) = (block / PIECE, (block % PIECE) as usize);
            match checksum(bytes) {
                0 => self.forget(block..block + 1),
                sum => self.0.entry(piece).or_insert_with(|| Box::new([0; PIECE as usize]))[at] = sum,
            }
        }
    }

    /// These blocks are zeros now.
    pub(crate) fn forget(&mut self, blocks: Range<u32>) {
        if blocks.is_empty() {
            return;
        }
        for (piece, sums) in self.0.range_mut(blocks.start / PIECE..=(blocks.end - 1) / PIECE) {
            let first = piece * PIECE;
            let within = |block: u32| block.saturating_sub(first).min(PIECE) as usize;
            sums[within(blocks.start)..within(blocks.end)].fill(0);
        }
    }
}

impl PartialEq for Checksums {
    fn eq(&self, other: &Checksums) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Checksums {}

impl fmt::Debug for Checksums {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Checksums(of {} blocks)", self.iter().count())
    }
}

/// The checksum of a whole block; 0 if it is all zeros, and then only.
fn checksum(block: &[u8]) -> u32 {
    if is_zero(block) {
        0
    } else {
        crc32c::crc32c(block).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_zeros_have_no_checksum_however_they_came_to_be() {
        let data = [7; 3 * BLOCK];
        let sum = crc32c::crc32c(&data[..BLOCK]);
        let mut sums = Checksums::default();
        sums.note(PIECE - 1, &data);
        assert_eq!(
            sums.iter().collect::<Vec<_>>(),
            [(PIECE - 1, sum), (PIECE, sum), (PIECE + 1, sum)]
        );
        sums.note(PIECE, &[0; BLOCK]);
        sums.forget(0..PIECE);
        sums.forget(PIECE + 2..u32::MAX);
        sums.forget(5..5);
        assert_eq!(sums.iter().collect::<Vec<_>>(), [(PIECE + 1, sum)]);
        sums.forget(PIECE + 1..PIECE + 2);
        assert_eq!(sums, Checksums::default());
    }

    #[test]
    fn a_file_is_read_without_its_holes_and_to_its_last_byte() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(1 << 40).expect("a sparse file");
        file.write_all_at(&[7; 5000], 1 << 39).expect("it is written");
        file.set_len((1 << 39) + 5000).expect("a sparse file");
        let mut expected = Checksums::default();
        let mut bytes = [7; 2 * BLOCK];
        bytes[5000..].fill(0);
        expected.note(1 << 27, &bytes);
        assert_eq!(Checksums::of_file(&file).expect("it is read"), expected);
        assert_eq!(expected.iter().count(), 2);
    }
}
