//! What must lie ready before a VMM is executed: disk, initrd, open descriptors.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use vmlet_init::config::MAX_CONFIG;
use vmlet_init::cpio::{config_cpio, pad4};

use crate::directory::{CONTROL, INITRD, MONITOR, MachineDir, OVERLAY, TERMINAL, VMM_LOG};
use crate::durable;
use crate::observation::DiskInfo;
use crate::process::number;
use crate::qemu::argv::Descriptors;
use crate::qemu::qcow2::{self, Qcow2Error};
use crate::spec::MachineSpec;

/// Why a machine cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A file cannot be used.
    #[error("{what} {path}: {source}")]
    File {
        /// What the file is.
        what: &'static str,
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The overlay cannot be made, read or grown.
    #[error("root disk {path}: {source}")]
    Disk {
        /// Which.
        path: String,
        /// Why.
        source: Qcow2Error,
    },
    /// The overlay stands on other bytes.
    #[error(
        "the root disk was made on the base {there}, the machine now names {wanted}: a disk stays with its base; delete the machine, or name the former image again"
    )]
    OtherBase {
        /// What the disk says.
        there: String,
        /// What the spec says.
        wanted: String,
    },
    /// The disk is larger than wanted.
    #[error("the root disk has {there} bytes and {wanted} are wanted: disks grow and never shrink")]
    WouldShrink {
        /// Present size.
        there: u64,
        /// Wanted size.
        wanted: u64,
    },
    /// The disk would be smaller than its image.
    #[error("a root disk of {wanted} bytes is smaller than its image of {base}")]
    TooSmall {
        /// Wanted size.
        wanted: u64,
        /// Size of the base.
        base: u64,
    },
    /// The guest would refuse it.
    #[error(
        "what the guest is told (files, environment, keys) has {bytes} bytes, more than {MAX_CONFIG}: put large files into the image"
    )]
    Configuration {
        /// Its size.
        bytes: usize,
    },
    /// The VMM's own user may not read a file.
    #[error("{path} must be readable for others (mode {mode:o}): the VMM runs as a user of its own")]
    Unreadable {
        /// Which.
        path: String,
        /// Its mode.
        mode: u32,
    },
}

/// Everything that the VMM inherits.
pub struct Prepared {
    /// The descriptors, to be kept open until it is executed.
    pub inherited: Vec<OwnedFd>,
    /// Their numbers.
    pub descriptors: Descriptors,
    /// The disk.
    pub disk: DiskInfo,
    /// Whether the kernel is an ELF (PVH) rather than a bzImage.
    pub kernel_is_elf: bool,
    /// Where the VMM's output goes.
    pub output: File,
    /// File name of the shared initrd.
    pub shared_initrd: Option<String>,
    /// `cgroup.procs` files of its cgroups.
    pub cgroups: Vec<File>,
}

/// Makes a machine ready to be executed. Everything may be repeated; what was made for an earlier run is
/// replaced under its name, never rewritten.
///
/// # Errors
/// [`PrepareError`].
pub fn prepare(
    dir: &MachineDir,
    spec: &MachineSpec,
    initrd: &Path,
    vmm_user: Option<u32>,
) -> Result<Prepared, PrepareError> {
    let (overlay, size) = overlay(dir, spec)?;
    let kernel = open("kernel", &spec.kernel)?;
    if let Some(_user) = vmm_user {
        let mode = kernel.metadata().map_err(file_error("kernel", &spec.kernel))?.mode();
        if mode & 0o004 == 0 {
            return Err(PrepareError::Unreadable {
                path: spec.kernel.display().to_string(),
                mode: mode & 0o7777,
            });
        }
    }
    let kernel_is_elf = {
        let mut magic = [0u8; 4];
        kernel.read_exact_at(&mut magic, 0).is_ok() && &magic == b"\x7fELF"
    };
    let shared_initrd = initrd.file_name().map(|name| name.to_string_lossy().into_owned());
    let initrd = guest_initrd(dir, spec, initrd, vmm_user)?;
    let base = open("base of the root disk", &spec.base)?;
    let modules = spec
        .modules_disk
        .as_deref()
        .map(|path| open("modules disk", path))
        .transpose()?;
    let listen = |name| dir.listen(name).map_err(file_error("socket", &dir.file(name)));
    let (monitor, control, terminal) = (listen(MONITOR)?, listen(CONTROL)?, listen(TERMINAL)?);
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.file(VMM_LOG))
        .and_then(|file| file.set_len(0).map(|()| file))
        .map_err(file_error("VMM log", &dir.file(VMM_LOG)))?;

    let descriptors = Descriptors {
        kernel: number(&kernel),
        initrd: number(&initrd),
        overlay: number(&overlay),
        base: number(&base),
        modules: modules.as_ref().map(number),
        monitor: number(&monitor),
        control: number(&control),
        terminal: number(&terminal),
    };
    let mut inherited: Vec<OwnedFd> = vec![kernel.into(), initrd.into(), overlay.into(), base.into()];
    inherited.extend(modules.map(OwnedFd::from));
    inherited.extend([monitor, control, terminal].map(OwnedFd::from));
    let mut pinned = vec![spec.base.clone(), spec.kernel.clone()];
    pinned.extend(spec.modules_disk.clone());
    Ok(Prepared {
        inherited,
        descriptors,
        disk: DiskInfo {
            base_id: spec.base_id.clone(),
            size_bytes: size,
            pinned,
        },
        kernel_is_elf,
        output,
        shared_initrd,
        cgroups: Vec::new(),
    })
}

/// The overlay, made, thrown away and grown as the spec says, and its size.
fn overlay(dir: &MachineDir, spec: &MachineSpec) -> Result<(File, u64), PrepareError> {
    let path = dir.file(OVERLAY);
    let disk_error = |source: Qcow2Error| PrepareError::Disk {
        path: path.display().to_string(),
        source,
    };
    if let Some(wanted) = spec.disk_size.filter(|size| *size < spec.base_size) {
        return Err(PrepareError::TooSmall {
            wanted,
            base: spec.base_size,
        });
    }
    if spec.ephemeral {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file_error("root disk", &path)(error));
            }
            _ => {}
        }
    }
    if path.symlink_metadata().is_err() {
        let size = spec.disk_size.unwrap_or(spec.base_size);
        let base = spec.base.to_string_lossy();
        durable::publish(dir.path(), OVERLAY, 0o600, true, |file| {
            qcow2::create(file, size, &base, &spec.base_id)
        })
        .map_err(disk_error)?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(file_error("root disk", &path))?;
    let there = qcow2::read(&file).map_err(disk_error)?;
    if there.base_id != spec.base_id {
        return Err(PrepareError::OtherBase {
            there: there.base_id,
            wanted: spec.base_id.clone(),
        });
    }
    let size = spec.disk_size.unwrap_or(there.size);
    if size < there.size {
        return Err(PrepareError::WouldShrink {
            there: there.size,
            wanted: size,
        });
    }
    if size > there.size {
        qcow2::grow(&file, &there, size).map_err(disk_error)?;
    }
    Ok((file, size))
}

/// One file of the shared initrd and the machine's own configuration behind it.
fn guest_initrd(
    dir: &MachineDir,
    spec: &MachineSpec,
    shared: &Path,
    vmm_user: Option<u32>,
) -> Result<File, PrepareError> {
    let configuration = config_cpio(&spec.guest);
    if configuration.len() > MAX_CONFIG {
        return Err(PrepareError::Configuration {
            bytes: configuration.len(),
        });
    }
    let mut source = open("initrd", shared)?;
    let path = dir.file(INITRD);
    durable::publish(dir.path(), INITRD, 0o400, false, |file| {
        let length = io::copy(&mut source, file)?;
        file.write_all(&[0u8; 4][..pad4(length)])?;
        file.write_all(&configuration)?;
        if let Some(user) = vmm_user {
            std::os::unix::fs::fchown(&*file, Some(user), Some(user))?;
        }
        Ok::<(), io::Error>(())
    })
    .map_err(file_error("initrd", &path))?;
    open("initrd", &path)
}

fn open(what: &'static str, path: &Path) -> Result<File, PrepareError> {
    File::open(path).map_err(file_error(what, path))
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrepareError {
    let path = path.display().to_string();
    move |source| PrepareError::File { what, path, source }
}
