//! Files that are replaced as a whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces `dir/name` by `bytes`: private name, rename. With `synced`, file and directory are synced.
///
/// One writer per directory: the private name is always the same, so a crash leaves at most one.
pub fn replace(dir: &Path, name: &str, bytes: &[u8], mode: u32, synced: bool) -> io::Result<()> {
    publish(dir, name, mode, synced, |file| file.write_all(bytes))
}

/// As [`replace`], with the content written by `fill`. The file is open for reading too.
pub fn publish<E: From<io::Error>>(
    dir: &Path,
    name: &str,
    mode: u32,
    synced: bool,
    fill: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let temporary = dir.join(format!("{name}.new"));
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    fill(&mut file)?;
    if synced {
        file.sync_all()?;
    }
    std::fs::rename(&temporary, dir.join(name))?;
    if synced {
        sync_directory(dir)?;
    }
    Ok(())
}

/// Makes the names in a directory outlive a power cut.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// `InvalidData` if it is longer or not a regular file.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is longer than {limit} bytes"),
        ));
    }
    Ok(bytes)
}
