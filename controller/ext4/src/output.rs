//! The file below: whole blocks in, few large writes out.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
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
    /// Who brings blocks to the disk while others are still being written.
    ahead: Option<Ahead>,
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
            ahead: None,
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

    /// Lets blocks be brought to the disk while more is written. It is no more than a hint, and those that are gathered
    /// are left out.
    pub(crate) fn write_back(&mut self, blocks: Range<u32>) {
        self.tell(Task::WriteBack(blocks));
    }

    /// Lets all that is written be synced while more is written. Its errors come with [`Output::sync`].
    pub(crate) fn sync_ahead(&mut self) -> Result<(), Error> {
        self.flush()?;
        self.tell(Task::Sync);
        Ok(())
    }

    fn tell(&mut self, task: Task) {
        if self.ahead.is_none() {
            self.ahead = Ahead::start(&self.file).ok();
        }
        // Without a thread it is all done at the end.
        if let Some(ahead) = &self.ahead {
            let _ = ahead.tasks.send(task);
        }
    }

    /// Makes everything durable, and tells what it is.
    pub(crate) fn sync(&mut self) -> Result<Checksums, Error> {
        self.flush()?;
        self.end_ahead().map_err(Error::io("sync"))?;
        self.file.sync_all().map_err(Error::io("sync"))?;
        self.complete = true;
        Ok(std::mem::take(&mut self.checksums))
    }

    fn end_ahead(&mut self) -> io::Result<()> {
        self.ahead.take().map_or(Ok(()), Ahead::end)
    }
}

/// What is done beside the writing.
enum Task {
    /// Begin to write these blocks to the disk.
    WriteBack(Range<u32>),
    /// Sync what was written by now.
    Sync,
}

/// The thread that does it.
#[derive(Debug)]
struct Ahead {
    tasks: Sender<Task>,
    thread: JoinHandle<io::Result<()>>,
}

impl Ahead {
    fn start(file: &File) -> io::Result<Ahead> {
        let file = file.try_clone()?;
        let (tasks, todo) = channel();
        let thread = std::thread::Builder::new().name("ext4-ahead".into());
        let thread = thread.spawn(move || work_ahead(&file, &todo))?;
        Ok(Ahead { tasks, thread })
    }

    /// Waits for its end. An error of the disk is told to one sync only: it counts.
    fn end(self) -> io::Result<()> {
        drop(self.tasks);
        let panicked = |_| Err(io::Error::other("the thread that syncs panicked"));
        self.thread.join().unwrap_or_else(panicked)
    }
}

fn work_ahead(file: &File, todo: &Receiver<Task>) -> io::Result<()> {
    for task in todo {
        match task {
            Task::WriteBack(blocks) => write_back(file, blocks),
            Task::Sync => file.sync_data()?,
        }
    }
    Ok(())
}

/// Begins to write blocks to the disk. What fails is told by the sync that follows.
fn write_back(file: &File, blocks: Range<u32>) {
    let (Ok(offset), Ok(length)) = (
        i64::try_from(u64::from(blocks.start) * BLOCK64),
        i64::try_from(blocks.len() as u64 * BLOCK64),
    ) else {
        return;
    };
    // SAFETY: a system call on a file that is open, with numbers only.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.complete {
            // Half an image takes no space, and nothing takes it for a whole one. What is not there any more need not be
            // synced either.
            let _ = self.file.set_len(0);
            let _ = self.end_ahead();
        }
    }
}
