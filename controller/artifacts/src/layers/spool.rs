//! File data kept in one private temporary file, for artefacts of which only some files are wanted.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use super::apply::{Content, Store};
use super::member::Segment;
use super::{LayerError, StoreError};

/// Keeps file data one behind the other.
pub struct Spool {
    file: File,
    end: u64,
    buffer: Vec<u8>,
}

/// A file's place in a [`Spool`]. Pieces are (offset, length); `None` is a hole.
#[derive(Clone, Debug)]
pub struct Spooled {
    pieces: Vec<(Option<u64>, u64)>,
    /// Size in bytes.
    pub size: u64,
}

impl Spool {
    /// Keeps data in `file`, which nobody else may use.
    pub fn new(file: File) -> Spool {
        Spool {
            file,
            end: 0,
            buffer: vec![0; 128 << 10],
        }
    }

    /// Reads a file's content back.
    pub fn open<'a>(&'a self, data: &'a Spooled) -> SpoolReader<'a> {
        SpoolReader {
            file: &self.file,
            pieces: &data.pieces,
            done: 0,
        }
    }
}

impl Store for Spool {
    type Data = Spooled;

    fn store(&mut self, content: &mut dyn Content) -> Result<Spooled, LayerError> {
        let mut data = Spooled {
            pieces: Vec::new(),
            size: 0,
        };
        while let Some(segment) = content.next(&mut self.buffer)? {
            let (place, length) = match segment {
                Segment::Hole(length) => (None, length),
                Segment::Data(bytes) => {
                    (&self.file)
                        .write_all(bytes)
                        .map_err(|error| LayerError::Store(StoreError::Io(error)))?;
                    let place = self.end;
                    self.end += bytes.len() as u64;
                    (Some(place), bytes.len() as u64)
                }
            };
            data.size += length;
            match (data.pieces.last_mut(), place) {
                (Some((Some(start), so_far)), Some(place)) if *start + *so_far == place => *so_far += length,
                _ => data.pieces.push((place, length)),
            }
        }
        Ok(data)
    }

    fn discard(&mut self, _: Spooled) -> Result<(), LayerError> {
        Ok(())
    }
}

/// Reads one file of a [`Spool`].
pub struct SpoolReader<'a> {
    file: &'a File,
    pieces: &'a [(Option<u64>, u64)],
    done: u64,
}

impl Read for SpoolReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(&(place, length)) = self.pieces.first() {
            if self.done == length {
                self.pieces = &self.pieces[1..];
                self.done = 0;
                continue;
            }
            let most = usize::try_from(length - self.done).unwrap_or(usize::MAX).min(buf.len());
            let n = match place {
                Some(start) => self.file.read_at(&mut buf[..most], start + self.done)?,
                None => {
                    buf[..most].fill(0);
                    most
                }
            };
            if n == 0 && most > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.done += n as u64;
            return Ok(n);
        }
        Ok(0)
    }
}
