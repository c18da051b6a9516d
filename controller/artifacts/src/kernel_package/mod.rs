//! Kernels as OCI artefacts: from a distribution's package, or a directory, to an OCI layout.
//!
//! The artefact holds an image that QEMU, Firecracker and Cloud Hypervisor boot directly (an ELF with
//! the PVH entry point, where the kernel has one) and the modules as a plain tar. Same input, same
//! bytes: nothing of the time, the user or the machine goes in.

mod archive;
pub(crate) mod collect;
pub(crate) mod image;
pub(crate) mod layout;
mod lz4;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::scratch::{self, Scratch};

/// Where the kernel comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A Debian package (`linux-image-*.deb`).
    Deb(PathBuf),
    /// A directory with `boot/vmlinuz-VERSION` and `lib/modules/VERSION`, as a package unpacks.
    Dir(PathBuf),
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packaged {
    /// The kernel's release, as `uname -r` prints it.
    pub version: String,
    /// Digest of the artefact's manifest.
    pub digest: String,
}

/// Why a kernel could not be packaged. Nothing is left at the output then.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The output is there already.
    #[error("{0} exists already; remove it or name another output")]
    Exists(PathBuf),
    /// The source is not what it should be.
    #[error("{path}: {problem}")]
    BadSource {
        /// The package or the directory.
        path: PathBuf,
        /// What is wrong, and with which member.
        problem: String,
    },
}

/// Makes an OCI layout at `output` from `source`. Blocks for seconds: it compresses the whole kernel.
///
/// It appears complete and durable, or not at all.
///
/// # Errors
/// See [`PackageError`].
pub fn package(source: &Source, output: &Path) -> Result<Packaged, PackageError> {
    let from = match source {
        Source::Deb(path) | Source::Dir(path) => path,
    };
    let io_at = |path: &Path| {
        let path = path.to_path_buf();
        move |error| PackageError::Io { path, error }
    };
    if fs::symlink_metadata(output).is_ok() {
        return Err(PackageError::Exists(output.to_path_buf()));
    }
    let parent = scratch::parent(output);
    let scratch = Scratch::next_to(output).map_err(io_at(parent))?;
    let problem = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::FileTooLarge => {
            PackageError::BadSource {
                path: from.clone(),
                problem: error.to_string(),
            }
        }
        _ => PackageError::Io {
            path: from.clone(),
            error,
        },
    };
    let spool = scratch.path().join("spool");
    let kernel = match source {
        Source::Deb(path) => archive::read_deb(path, &spool),
        Source::Dir(path) => collect::read_dir(path, &spool),
    }
    .map_err(problem)?;
    let (image, format) = image::bootable(&kernel.image, image::MAX_IMAGE).map_err(problem)?;
    let layout = scratch.path().join("layout");
    let digest = layout::write(&layout, &kernel, &image, format).map_err(io_at(&layout))?;
    publish(&layout, output, parent)?;
    Ok(Packaged {
        version: kernel.version,
        digest,
    })
}

fn publish(layout: &Path, output: &Path, parent: &Path) -> Result<(), PackageError> {
    scratch::publish(layout, output, false).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => PackageError::Exists(output.to_path_buf()),
        _ => PackageError::Io {
            path: output.to_path_buf(),
            error,
        },
    })?;
    crate::store::files::sync_dir(parent).map_err(|error| PackageError::Io {
        path: parent.to_path_buf(),
        error,
    })
}

fn bad(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

#[cfg(test)]
mod tests;
