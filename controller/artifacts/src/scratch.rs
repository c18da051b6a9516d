//! A private directory beside an output, so that the last step is a rename within one file system.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags};

/// What of the output's name is in the directory's: with the rest it fits into the 255 bytes that file systems take.
const MOST_OF_NAME: usize = 200;
/// What the name ends with, after 16 random digits.
const SUFFIX: &str = ".partial";
/// How often another process may take a new directory for one that was left behind.
const TRIES: usize = 16;

/// A directory that is removed when this is dropped; by the next one for the same output, if its process was killed.
pub(crate) struct Scratch {
    path: PathBuf,
    /// Tells it from one whose process is gone.
    _lock: File,
}

impl Scratch {
    /// Makes one beside `output`.
    ///
    /// # Errors
    /// Of the directory that `output` is in; `output` is no name of a file.
    pub(crate) fn next_to(output: &Path) -> io::Result<Scratch> {
        let Some(name) = output.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no name of a file"));
        };
        let parent = parent(output);
        let prefix = prefix(name);
        sweep(parent, &prefix)?;
        for _ in 0..TRIES {
            let mut name = prefix.clone();
            name.push(format!("{:016x}{SUFFIX}", rand::random::<u64>()));
            let path = parent.join(name);
            fs::DirBuilder::new().mode(0o700).create(&path)?;
            match locked(&path) {
                // Between the two lines a sweep may have taken it, and away.
                Ok(Some(lock)) if is_there(&path, &lock) => return Ok(Scratch { path, _lock: lock }),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let _ = fs::remove_dir(&path);
                    return Err(error);
                }
            }
        }
        Err(io::Error::other("other processes take away what this one makes"))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(dir = %self.path.display(), %error, "a temporary directory stays behind");
        }
    }
}

/// Gives a file or directory its name, if nothing has that name, or also then.
///
/// # Errors
/// `AlreadyExists`, and those of the file system.
pub(crate) fn publish(made: &Path, output: &Path, replace: bool) -> io::Result<()> {
    if replace {
        return fs::rename(made, output);
    }
    let here = rustix::fs::CWD;
    rustix::fs::renameat_with(here, made, here, output, RenameFlags::NOREPLACE)?;
    Ok(())
}

/// The directory that a file is in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn prefix(name: &OsStr) -> OsString {
    let name = name.as_bytes();
    let mut prefix = OsString::from(".");
    prefix.push(OsStr::from_bytes(&name[..name.len().min(MOST_OF_NAME)]));
    prefix.push(".");
    prefix
}

/// Removes what killed processes left. What belongs to another user, or cannot be removed, stays.
fn sweep(parent: &Path, prefix: &OsStr) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let name = entry?.file_name();
        let random = name.as_bytes().strip_prefix(prefix.as_bytes());
        let random = random.and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
        if !random.is_some_and(|random| random.len() == 16 && random.iter().all(u8::is_ascii_hexdigit)) {
            continue;
        }
        let path = parent.join(name);
        if let Ok(Some(_lock)) = locked(&path)
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::debug!(dir = %path.display(), %error, "an old temporary directory stays");
        }
    }
    Ok(())
}

/// The lock on a directory of this user; none: somebody has it.
fn locked(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if dir.metadata()?.uid() != rustix::process::geteuid().as_raw() {
        return Ok(None);
    }
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(dir)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_there(path: &Path, lock: &File) -> bool {
    let of = |metadata: io::Result<fs::Metadata>| metadata.ok().map(|m| (m.dev(), m.ino()));
    let there = of(path.symlink_metadata());
    there.is_some() && there == of(lock.metadata())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<OsString> {
        let names = fs::read_dir(dir).expect("a directory");
        let mut names: Vec<_> = names.map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_killed_process_left_goes_with_the_next_and_what_lives_or_is_anothers_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let output = dir.path().join("disk.img");
        let living = Scratch::next_to(&output).expect("made");
        fs::write(living.path().join("half"), "x").expect("written");
        let left = dir.path().join(".disk.img.0123456789abcdef.partial");
        fs::create_dir(&left).expect("made");
        fs::write(left.join("half"), "x").expect("written");
        let others = [
            ".disk.img.0123456789abcdeg.partial",
            ".disk.0123456789abcdef.partial",
            ".other.0123456789abcdef.partial",
        ];
        for other in others {
            fs::create_dir(dir.path().join(other)).expect("made");
        }
        let next = Scratch::next_to(&output).expect("made");
        assert!(!left.exists());
        assert!(living.path().join("half").exists());
        drop((next, living));
        let mut others = others.map(OsString::from);
        others.sort();
        assert_eq!(names(dir.path()), others);
    }

    #[test]
    fn a_link_where_one_could_lie_is_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let precious = dir.path().join("precious");
        fs::create_dir(&precious).expect("made");
        fs::write(precious.join("file"), "x").expect("written");
        std::os::unix::fs::symlink(&precious, dir.path().join(".d.0123456789abcdef.partial")).expect("linked");
        drop(Scratch::next_to(&dir.path().join("d")).expect("made"));
        assert!(precious.join("file").exists());
    }

    #[test]
    fn a_name_may_be_as_long_as_file_systems_take() {
        let dir = tempfile::tempdir().expect("a directory");
        let output = dir.path().join("n".repeat(255));
        let scratch = Scratch::next_to(&output).expect("made");
        fs::write(scratch.path().join("made"), "x").expect("written");
        publish(&scratch.path().join("made"), &output, false).expect("named");
        fs::write(scratch.path().join("made"), "y").expect("written");
        let refused = publish(&scratch.path().join("made"), &output, false).expect_err("refused");
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&output).expect("there"), b"x");
        publish(&scratch.path().join("made"), &output, true).expect("replaced");
        assert_eq!(fs::read(&output).expect("there"), b"y");
    }
}
