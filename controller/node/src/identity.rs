//! Whose data this is: one agent per data directory, one API per data directory.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Takes the lock on a data directory, which dies with the process whatever its end.
///
/// # Errors
/// `Ok(None)` when another agent holds it; `Err` when the directory cannot be used at all.
pub fn lock_data_dir(dir: &Path) -> std::io::Result<Option<File>> {
    fs::create_dir_all(dir)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join("lock"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())?;
            Ok(Some(file))
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Process id that the holder of the lock wrote, for a message.
pub fn lock_holder(dir: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(dir.join("lock"))
        .ok()?
        .take(32)
        .read_to_string(&mut text)
        .ok()?;
    text.trim().parse().ok()
}

/// Whether the data directory belongs to the API whose kube-system namespace has this uid. The first
/// API seen becomes the owner.
///
/// # Errors
/// When the file cannot be read or written.
pub fn claim_api(dir: &Path, kube_system_uid: &str) -> std::io::Result<Result<(), String>> {
    let path = dir.join("api-uid");
    match fs::read_to_string(&path) {
        Ok(owner) if owner.trim() == kube_system_uid => Ok(Ok(())),
        Ok(owner) if !owner.trim().is_empty() => Ok(Err(owner.trim().to_owned())),
        Ok(_) => write_claim(dir, &path, kube_system_uid),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => write_claim(dir, &path, kube_system_uid),
        Err(error) => Err(error),
    }
}

fn write_claim(dir: &Path, path: &Path, uid: &str) -> std::io::Result<Result<(), String>> {
    let temp = path.with_extension("tmp");
    let mut file = File::create(&temp)?;
    file.write_all(uid.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temp, path)?;
    File::open(dir)?.sync_all()?;
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_on_one_data_directory_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = lock_data_dir(dir.path()).expect("usable").expect("free");
        assert!(lock_data_dir(dir.path()).expect("usable").is_none());
        assert_eq!(lock_holder(dir.path()), Some(std::process::id()));
        drop(first);
        assert!(lock_data_dir(dir.path()).expect("usable").is_some());
    }

    #[test]
    fn a_data_directory_belongs_to_the_first_api_it_saw() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(claim_api(dir.path(), "a").expect("usable"), Ok(()));
        assert_eq!(claim_api(dir.path(), "a").expect("usable"), Ok(()));
        assert_eq!(claim_api(dir.path(), "b").expect("usable"), Err("a".to_owned()));
    }
}
