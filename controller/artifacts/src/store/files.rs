//! Durable file operations: the few on which crash safety rests, each with a failpoint before it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::failpoint::{done, step};

/// Records are small; anything longer is not one of ours.
const LONGEST_RECORD: u64 = 1 << 20;

/// Makes a directory (fine if it is there) with exactly this mode, whatever the umask.
pub fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    step()?;
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error),
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// fsync of a directory: makes the names in it durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    step()?;
    File::open(path)?.sync_all()?;
    done("sync directory", path);
    Ok(())
}

/// Writes a new file durably (but not yet its name: see [`sync_dir`]).
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    step()?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    step()?;
    file.write_all(bytes)?;
    step()?;
    file.sync_all()
}

/// Replaces `dir/name` durably; readers see the old or the new content. `scratch` is a private
/// path on the same file system.
pub fn replace(dir: &Path, name: &str, bytes: &[u8], scratch: &Path) -> io::Result<()> {
    let written = write_new(scratch, bytes, 0o600).and_then(|()| rename(scratch, &dir.join(name)));
    if written.is_err() {
        let _ = remove_file(scratch);
    }
    written?;
    sync_dir(dir)
}

/// Makes the files in `dir` read-only and durable. Anything but plain files in it is an error.
pub fn seal_files(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            return Err(io::Error::other(format!(
                "{} is not a plain file",
                entry.path().display()
            )));
        }
        step()?;
        fs::set_permissions(entry.path(), Permissions::from_mode(0o444))?;
        step()?;
        File::open(entry.path())?.sync_all()?;
        done("sync file", &entry.path());
    }
    Ok(())
}

/// rename(2).
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step()?;
    fs::rename(from, to)?;
    done("rename", to);
    Ok(())
}

/// Removes a file; one that is gone already is fine.
pub fn remove_file(path: &Path) -> io::Result<()> {
    step()?;
    gone_is_fine(fs::remove_file(path))
}

/// Removes whatever is at `path`, without following links; nothing there is fine.
pub fn remove_all(path: &Path) -> io::Result<()> {
    step()?;
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => gone_is_fine(fs::remove_dir_all(path)),
        Ok(_) => gone_is_fine(fs::remove_file(path)),
        Err(error) => gone_is_fine(Err(error)),
    }
}

/// Reads a small plain file; a link, a device or a huge file is an error.
pub fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a plain file"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST_RECORD + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST_RECORD {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long for a record"));
    }
    Ok(bytes)
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
