//! The least that a tar asks for: where each file's bytes are, and their place in the output.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};

const RECORD: usize = 512;
const BLOCK: usize = 4096;
/// As much as is gathered before it is written.
const GATHER: usize = 1 << 20;

/// Puts the content of files at aligned offsets, one behind another; blocks of zeros become holes.
pub struct Place {
    file: File,
    gathered: Vec<u8>,
    /// Offset in `file` of the first gathered byte.
    at: u64,
}

impl Place {
    /// Places into an empty file.
    pub fn new(file: File) -> Place {
        Place {
            file,
            gathered: Vec::with_capacity(2 * GATHER),
            at: 0,
        }
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= GATHER {
            self.write()?;
        }
        Ok(())
    }

    fn end_of_file(&mut self) {
        self.gathered.resize(self.gathered.len().next_multiple_of(BLOCK), 0);
    }

    /// Writes whole blocks.
    fn write(&mut self) -> io::Result<()> {
        let whole = self.gathered.len() / BLOCK * BLOCK;
        let mut rest = &self.gathered[..whole];
        while !rest.is_empty() {
            let filled = BLOCK * rest.chunks(BLOCK).take_while(|block| !is_zero(block)).count();
            self.file.write_all_at(&rest[..filled], self.at)?;
            let zeros = BLOCK * rest[filled..].chunks(BLOCK).take_while(|block| is_zero(block)).count();
            self.at += (filled + zeros) as u64;
            rest = &rest[filled + zeros..];
        }
        self.gathered.drain(..whole);
        Ok(())
    }

    /// Writes what is left and makes it durable.
    pub fn finish(mut self) -> io::Result<()> {
        self.end_of_file();
        self.write()?;
        self.file.sync_all()
    }
}

fn is_zero(block: &[u8]) -> bool {
    block[0] == 0 && block.iter().all(|byte| *byte == 0)
}

/// Reads a layer's tar to its end and places its regular files. Sparse files are placed as they are stored.
pub fn scan(mut tar: impl Read, place: &mut Place) -> Result<()> {
    let mut record = [0; RECORD];
    let mut buffer = vec![0; 128 << 10];
    loop {
        let start = tar.read(&mut record)?;
        if start == 0 {
            return Ok(());
        }
        tar.read_exact(&mut record[start..])?;
        let size = number(&record[124..136]).context("a tar header has no size")?;
        let regular = matches!(record[156], 0 | b'0');
        let mut left = size.next_multiple_of(RECORD as u64);
        let mut data = size;
        while left > 0 {
            let most = left.min(buffer.len() as u64) as usize;
            let n = tar.read(&mut buffer[..most])?;
            ensure!(n > 0, "a tar is cut off");
            left -= n as u64;
            let content = data.min(n as u64) as usize;
            data -= content as u64;
            if regular {
                place.data(&buffer[..content])?;
            }
        }
        if regular {
            place.end_of_file();
        }
    }
}

/// An octal number, or one of base 256. A record of zeros has the number 0.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        return field[1..]
            .iter()
            .try_fold(0u64, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let digits = field
        .iter()
        .skip_while(|byte| **byte == b' ')
        .take_while(|byte| byte.is_ascii_digit());
    digits.into_iter().try_fold(0u64, |sum, byte| {
        sum.checked_mul(8)?.checked_add(u64::from(byte - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lie_at_block_boundaries_and_zeros_are_holes() {
        let mut tar = tar::Builder::new(Vec::new());
        let zeros = vec![0; 3 * BLOCK];
        for (name, content) in [("a", &b"first"[..]), ("z", &zeros), ("b", &[7; 5000])] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, content).expect("to memory");
        }
        let tar = tar.into_inner().expect("to memory");
        let file = tempfile::tempfile().expect("a temporary file");
        let mut place = Place::new(file.try_clone().expect("a file"));
        scan(tar.as_slice(), &mut place).expect("a good tar");
        place.finish().expect("a temporary file");
        let mut bytes = vec![0; 4 * BLOCK + 5000];
        file.read_exact_at(&mut bytes, 0).expect("all of it");
        assert_eq!(&bytes[..6], b"first\0");
        assert!(bytes[6..4 * BLOCK].iter().all(|byte| *byte == 0));
        assert!(bytes[4 * BLOCK..].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_cut_tar_is_an_error() {
        let mut header = tar::Header::new_gnu();
        header.set_size(1000);
        header.set_cksum();
        let tar = [&header.as_bytes()[..], &[1; 10]].concat();
        let mut place = Place::new(tempfile::tempfile().expect("a temporary file"));
        assert!(scan(tar.as_slice(), &mut place).is_err());
    }
}
