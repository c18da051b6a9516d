//! The initrd of a kernel: `vmlet-init` and the modules that a boot needs.
//!
//! It is built once per kernel and kept in a cache directory. What one VM is told comes in a second
//! archive that is put behind it (`vmlet_init::cpio::config_cpio`). The archive is not compressed:
//! that changes nothing about the time to boot and asks nothing of the kernel. An initrd that the kernel artefact
//! brings goes before it as it is: what is unpacked later wins, so `/init` is ours
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

mod elf;
mod modules;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use vmlet_init::cpio::{Writer, pad4};

pub use modules::Module;

/// The guest's init, as the build script built it.
pub const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vmlet-init"));

/// Part of the cache's key: raised when the layout of the archive changes.
const FORMAT: &str = "vmlet-initrd-1";

const TEMPORARY: &str = ".tmp-";

/// Why an initrd could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// A file of the cache, or the archive of modules, cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The archive of modules holds something that is not a module.
    #[error("module {name} of the kernel's modules archive is damaged: {problem}; package the kernel again")]
    BadModule {
        /// Which.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

/// The initrd for a kernel, from the cache or newly built and durable. Blocks on the disk.
///
/// `kernel_digest` is only hashed into the name of the file. Without an archive of modules the
/// kernel must have the drivers built in. `own` is an initrd of the kernel's own.
///
/// # Errors
/// See [`InitrdError`].
pub fn ensure(
    cache: &Path,
    kernel_digest: &str,
    modules_tar: Option<&Path>,
    own: Option<&Path>,
) -> Result<PathBuf, InitrdError> {
    let path = cache.join(name(kernel_digest, [modules_tar.is_some(), own.is_some()]));
    if path.exists() {
        return Ok(path);
    }
    let at = |error| InitrdError::Io {
        path: path.clone(),
        error,
    };
    let in_place = is_renewed_in_place(&path);
    if in_place {
        File::create(&path).map_err(at)?;
    }
    let modules = match modules_tar {
        Some(tar) => modules::closure(tar)?,
        None => Vec::new(),
    };
    if in_place {
        fs::write(&path, build(INIT, &modules)).map_err(at)?;
        return Ok(path);
    }
    fs::create_dir_all(cache).map_err(at)?;
    let open = |path: &Path| {
        File::open(path).map_err(|error| InitrdError::Io {
            path: path.to_owned(),
            error,
        })
    };
    let own = own.map(open).transpose()?;
    publish(cache, &path, own, &build(INIT, &modules)).map_err(at)?;
    Ok(path)
}

/// Whether an initrd is rewritten where others read it: only in a build that has this bug on purpose (see
/// e2e), and there from the second time on.
fn is_renewed_in_place(path: &Path) -> bool {
    static MADE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    cfg!(feature = "bug-seed-rewritten-in-place")
        && !MADE
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path.to_owned())
}

/// Deletes from the cache what a crash left half-written, and every initrd whose file name is not in `used`:
/// it is made again when it is wanted. Only at start: nobody may be in [`ensure`].
///
/// # Errors
/// The directory cannot be read. One that is missing holds nothing.
pub fn sweep(cache: &Path, used: &BTreeSet<String>) -> io::Result<()> {
    let entries = match fs::read_dir(cache) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| used.contains(name)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The archive itself. Same init and modules, same bytes.
pub fn build(init: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Writer::new();
    archive.directory("dev", 0o755);
    // Before anything is mounted, the kernel opens this for PID 1's standard streams.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, init);
    archive.directory("vmlet", 0o700);
    archive.directory("vmlet/modules", 0o700);
    let order: String = modules.iter().map(|module| format!("{}.ko\n", module.name)).collect();
    archive.file("vmlet/modules/order", 0o600, order.as_bytes());
    for module in modules {
        archive.file(&format!("vmlet/modules/{}.ko", module.name), 0o600, &module.content);
    }
    archive.finish()
}

fn name(kernel_digest: &str, with: [bool; 2]) -> String {
    let mut hash = Sha256::new();
    for part in [FORMAT.as_bytes(), kernel_digest.as_bytes(), &with.map(u8::from), INIT] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn publish(cache: &Path, path: &Path, own: Option<File>, content: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = cache.join(format!("{TEMPORARY}{}-{count}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        if let Some(mut own) = own {
            let length = io::copy(&mut own, &mut file)?;
            // Archives begin at multiples of four.
            file.write_all(&[0; 4][..pad4(length)])?;
        }
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(cache)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_modules_gets_an_initrd_once() {
        let cache = tempfile::tempdir().expect("a directory");
        let path = ensure(cache.path(), "sha256:../../x", None, None).expect("made");
        assert_eq!(path.parent(), Some(cache.path()));
        let bytes = fs::read(&path).expect("there");
        assert_eq!(bytes, build(INIT, &[]));
        fs::write(&path, "kept").expect("written");
        assert_eq!(ensure(cache.path(), "sha256:../../x", None, None).expect("made"), path);
        assert_eq!(
            fs::read(&path).expect("there"),
            b"kept",
            "an existing one is used as it is"
        );
        assert_ne!(ensure(cache.path(), "sha256:y", None, None).expect("made"), path);
    }

    #[test]
    fn an_initrd_of_the_kernels_own_is_unpacked_before_ours() {
        let cache = tempfile::tempdir().expect("a directory");
        let own = cache.path().join("own");
        fs::write(&own, b"070707").expect("written");
        let with = ensure(cache.path(), "k", None, Some(&own)).expect("made");
        assert_eq!(
            fs::read(&with).expect("there"),
            [b"070707\0\0", build(INIT, &[]).as_slice()].concat()
        );
        assert_ne!(ensure(cache.path(), "k", None, None).expect("made"), with);
        let missing = ensure(cache.path(), "l", None, Some(&cache.path().join("missing")));
        assert!(missing.expect_err("refused").to_string().contains("missing"));
    }

    #[test]
    fn a_sweep_keeps_what_is_used_and_nothing_else() {
        let cache = tempfile::tempdir().expect("a directory");
        for name in [".tmp-1-1", "used", "unused"] {
            fs::write(cache.path().join(name), "").expect("written");
        }
        let used = BTreeSet::from(["used".to_owned(), "elsewhere".to_owned()]);
        sweep(cache.path(), &used).expect("swept");
        let left: Vec<_> = fs::read_dir(cache.path()).expect("there").flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "used");
        sweep(&cache.path().join("missing"), &used).expect("nothing to sweep");
    }

    #[test]
    fn a_damaged_archive_of_modules_leaves_nothing_behind() {
        let cache = tempfile::tempdir().expect("a directory");
        let tar = cache.path().join("modules.tar");
        fs::write(&tar, vec![7u8; 2048]).expect("written");
        let initrds = cache.path().join("initrds");
        assert!(matches!(
            ensure(&initrds, "d", Some(&tar), None),
            Err(InitrdError::Io { .. })
        ));
        assert!(!initrds.exists());
    }

    #[test]
    fn the_init_needs_no_dynamic_loader() {
        assert!(INIT.starts_with(b"\x7fELF"));
        let number = |at: usize| usize::from(u16::from_le_bytes([INIT[at], INIT[at + 1]]));
        let (start, size, count) = (number(0x20), number(0x36), number(0x38));
        let kinds: Vec<usize> = (0..count).map(|index| number(start + index * size)).collect();
        assert!(kinds.contains(&1), "it has segments to load: {kinds:?}");
        assert!(!kinds.contains(&3), "PT_INTERP asks for a loader: {kinds:?}");
    }
}
