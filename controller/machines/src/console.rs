//! The console log of one machine: two files of bounded size for its latest run, and two for the run before.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::directory::MachineDir;

/// The newest output.
pub const LOG: &str = "console.log";
/// What was before it in the same run.
pub const OLDER: &str = "console.log.1";
/// [`LOG`] as it was when the run before ended.
pub const PREVIOUS_LOG: &str = "previous.log";
/// [`OLDER`] as it was when the run before ended.
pub const PREVIOUS_OLDER: &str = "previous.log.1";

/// Writes a machine's console output, at most twice `limit` bytes of a run, and keeps two runs.
#[derive(Debug)]
pub struct ConsoleLog {
    dir: MachineDir,
    limit: u64,
    file: Option<File>,
    length: u64,
    /// Bytes written and rotated away since this agent took the log over.
    before: u64,
}

/// A piece of a console log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleChunk {
    /// Where it begins, counted in bytes since this agent took the machine over. Greater than what was
    /// asked for if that is gone.
    pub offset: u64,
    /// As the guest wrote it: any bytes.
    pub bytes: Vec<u8>,
    /// Where to read on.
    pub next: u64,
}

impl ConsoleLog {
    /// The log in a machine's directory, continued where it ends.
    pub fn new(dir: MachineDir, limit: u64) -> ConsoleLog {
        let length = |name| std::fs::metadata(dir.file(name)).map_or(0, |m| m.len());
        ConsoleLog {
            length: length(LOG),
            before: length(OLDER),
            file: None,
            dir,
            limit,
        }
    }

    /// Begins a new run: what is there becomes the log of the run before.
    pub fn begin_run(&mut self) -> io::Result<()> {
        self.file = None;
        // The older half first: cut off after it, what is repeated at the next start loses nothing of this run.
        for (from, to) in [(OLDER, PREVIOUS_OLDER), (LOG, PREVIOUS_LOG)] {
            if !self.renamed(from, to)? {
                gone(std::fs::remove_file(self.dir.file(to)))?;
            }
        }
        self.before += self.length;
        self.length = 0;
        Ok(())
    }

    /// Begins a new file in the same run.
    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        self.renamed(LOG, OLDER)?;
        self.before += self.length;
        self.length = 0;
        Ok(())
    }

    /// Whether there was anything to rename.
    fn renamed(&self, from: &str, to: &str) -> io::Result<bool> {
        gone(std::fs::rename(self.dir.file(from), self.dir.file(to)))
    }

    /// Adds output.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(usize::try_from(self.limit).unwrap_or(usize::MAX).max(1)) {
            if self.length + part.len() as u64 > self.limit {
                self.rotate()?;
            }
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(
                    OpenOptions::new()
                        .append(true)
                        .create(true)
                        .mode(0o600)
                        .open(self.dir.file(LOG))?,
                ),
            };
            file.write_all(part)?;
            self.length += part.len() as u64;
        }
        Ok(())
    }

    /// The newest output, as much as that; nothing where it cannot be read.
    pub fn tail(&self, bytes: u64) -> Vec<u8> {
        read_file(&self.dir.file(LOG), self.length.saturating_sub(bytes)).unwrap_or_default()
    }

    /// A reader that shares nothing with the writer.
    pub fn reader(&self) -> ConsoleReader {
        ConsoleReader {
            log: self.dir.file(LOG),
            previous: self.dir.file(OLDER),
            before: self.before,
            length: self.length,
        }
    }
}

/// Where the log stood at one moment.
#[derive(Clone, Debug)]
pub struct ConsoleReader {
    log: PathBuf,
    previous: PathBuf,
    before: u64,
    length: u64,
}

impl ConsoleReader {
    /// Reads from `offset` on, as much as there is.
    ///
    /// # Errors
    /// The file system's. A log that is not there is empty.
    pub fn read(&self, offset: u64) -> io::Result<ConsoleChunk> {
        let next = self.before + self.length;
        let mut bytes = Vec::new();
        let mut start = offset.min(next);
        if start < self.before {
            let old = read_file(&self.previous, 0)?;
            let first = self.before.saturating_sub(old.len() as u64);
            start = start.max(first);
            bytes.extend_from_slice(&old[usize::try_from(start - first).unwrap_or(usize::MAX).min(old.len())..]);
        }
        let mut new = read_file(&self.log, start.saturating_sub(self.before))?;
        bytes.append(&mut new);
        Ok(ConsoleChunk {
            offset: start,
            next: start + bytes.len() as u64,
            bytes,
        })
    }
}

/// False: what was to be changed was not there.
fn gone(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_file(path: &std::path::Path, from: u64) -> io::Result<Vec<u8>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len().saturating_sub(from);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(root: &std::path::Path, limit: u64) -> ConsoleLog {
        let dir = MachineDir::new(root, "m");
        dir.create().expect("creates");
        ConsoleLog::new(dir, limit)
    }

    #[test]
    fn a_flood_keeps_the_newest_within_twice_the_limit() {
        let root = tempfile::tempdir().expect("a directory");
        let mut log = log(root.path(), 1000);
        for n in 0..1000u32 {
            log.append(format!("{n:06}\n").as_bytes()).expect("writes");
        }
        log.append(&[b'x'; 2500]).expect("writes");
        let sizes: Vec<u64> = [LOG, OLDER]
            .iter()
            .map(|n| std::fs::metadata(root.path().join("m").join(n)).expect("there").len())
            .collect();
        assert_eq!(sizes, [500, 1000]);
        let chunk = log.reader().read(0).expect("reads");
        assert_eq!((chunk.offset, chunk.next), (8000, 9500));
        assert_eq!(chunk.bytes, [b'x'; 1500]);
    }

    #[test]
    fn reading_goes_on_where_it_ended_across_a_rotation() {
        let root = tempfile::tempdir().expect("a directory");
        let mut log = log(root.path(), 10);
        let mut at = 0;
        let mut all = Vec::new();
        for part in ["hello ", "world", "", "and more", "!"] {
            log.append(part.as_bytes()).expect("writes");
            let chunk = log.reader().read(at).expect("reads");
            assert_eq!(chunk.offset, at);
            at = chunk.next;
            all.extend(chunk.bytes);
        }
        assert_eq!(String::from_utf8_lossy(&all), "hello worldand more!");
        assert_eq!(log.reader().read(u64::MAX).expect("reads").bytes, b"");
    }

    #[test]
    fn a_new_agent_continues_the_log() {
        let root = tempfile::tempdir().expect("a directory");
        log(root.path(), 100).append(b"one ").expect("writes");
        let mut log = log(root.path(), 100);
        log.append(b"two").expect("writes");
        assert_eq!(log.reader().read(0).expect("reads").bytes, b"one two");
    }
    #[test]
    fn a_new_run_begins_a_log_and_keeps_the_one_before() {
        let root = tempfile::tempdir().expect("a directory");
        let mut log = log(root.path(), 10);
        let kept = |name| std::fs::read_to_string(root.path().join("m").join(name)).ok();
        for part in ["first old ", "first new"] {
            log.append(part.as_bytes()).expect("writes");
        }
        let end = log.reader().read(0).expect("reads").next;
        log.begin_run().expect("begins");
        assert_eq!(log.reader().read(0).expect("reads").bytes, b"");
        log.append(b"second").expect("writes");
        let chunk = log.reader().read(0).expect("reads");
        assert_eq!((chunk.offset, chunk.bytes.as_slice()), (end, b"second".as_slice()));
        let previous = [PREVIOUS_OLDER, PREVIOUS_LOG].map(kept);
        assert_eq!(previous, [Some("first old ".into()), Some("first new".into())]);
        // Of the run before the last nothing is left.
        log.begin_run().expect("begins");
        assert_eq!(
            [PREVIOUS_OLDER, PREVIOUS_LOG, LOG].map(kept),
            [None, Some("second".into()), None]
        );
        // A run that printed nothing has an empty log, not that of an earlier one.
        log.begin_run().expect("begins");
        assert_eq!([PREVIOUS_OLDER, PREVIOUS_LOG].map(kept), [None, None]);
    }
}
