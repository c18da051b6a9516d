//! Disks by their virtio serial: the root (grown to its device) and the modules.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fd::AsRawFd;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use vmlet_init::channel::ExitReason;
use vmlet_init::ext4::{SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock};

use super::failure::{Because, Failure, at};
use super::files::Root;
use super::mounts::NEW_ROOT;
use super::uevents::Uevents;
use super::{DEVICE_TIMEOUT, Guest, log};

/// `_IOW('f', 16, __u64)`: grow a mounted ext4 to this number of blocks (Documentation/filesystems/ext4).
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

struct Disk {
    device: String,
    bytes: u64,
}

/// Mounts the root and grows it to its device. A failed growth is a warning, not the end:
/// the data are there, and more room is not worth losing sight of them.
pub fn mount_root(guest: &mut Guest, uevents: &Uevents) -> Result<(), Failure> {
    let serial = guest.config.root_serial.clone();
    let disk = find(&serial, uevents).ok_or_else(|| {
        Failure::new(
            ExitReason::RootNotFound,
            format!("no disk with serial {serial:?} within {} s", DEVICE_TIMEOUT.as_secs()),
        )
    })?;
    let before = superblock(&disk).because(ExitReason::RootNotMountable)?;
    let grows = guest.config.grow_root && before.grown(disk.bytes).is_some();
    // New groups come zeroed from the disk; without this a thread would write all their tables.
    let options = if grows { c"noinit_itable" } else { c"" };
    let mount_it = || {
        mount(&disk.device, NEW_ROOT, "ext4", MountFlags::empty(), options)
            .map_err(at(format_args!("mount {}", disk.device)))
    };
    mount_it().because(ExitReason::RootNotMountable)?;
    if before.needs_recovery {
        // A growth that was cut off is replayed by this mount, which keeps the old geometry in
        // memory (seen on 6.1): writes get lost, and growing again is a BUG. A second mount is sound.
        unmount(NEW_ROOT, UnmountFlags::empty())
            .map_err(at("unmount after recovery"))
            .because(ExitReason::RootNotMountable)?;
        mount_it().because(ExitReason::RootNotMountable)?;
    }
    if grows && let Err(error) = grow(&disk) {
        guest.warn(format_args!(
            "the root could not be grown to {} bytes: {error}",
            disk.bytes
        ));
    }
    Ok(())
}

fn grow(disk: &Disk) -> io::Result<()> {
    let Some(blocks) = superblock(disk)?.grown(disk.bytes) else {
        return Ok(());
    };
    let root = File::open(NEW_ROOT)?;
    // SAFETY: the request reads one u64 through the pointer, which outlives the call.
    if unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) } != 0 {
        return Err(io::Error::last_os_error());
    }
    log::info(&format!("the root has {blocks} blocks now"));
    Ok(())
}

fn superblock(disk: &Disk) -> io::Result<Superblock> {
    let mut bytes = [0u8; SUPERBLOCK_SIZE];
    File::open(&disk.device)?.read_exact_at(&mut bytes, SUPERBLOCK_OFFSET)?;
    Superblock::parse(&bytes).ok_or_else(|| io::Error::other(format!("{} holds no ext4 file system", disk.device)))
}

/// Mounts the modules disk at `/lib/modules/<version>` of the root.
pub fn mount_modules(guest: &Guest, root: &Root, uevents: &Uevents) -> io::Result<()> {
    let Some(serial) = &guest.config.modules_serial else {
        return Ok(());
    };
    let disk =
        find(serial, uevents).ok_or_else(|| io::Error::other(format!("no disk with serial {serial:?} for modules")))?;
    let version = rustix::system::uname().release().to_string_lossy().into_owned();
    let target = root.directory(&format!("/lib/modules/{version}"), 0o755)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount(
        &disk.device,
        format!("/proc/self/fd/{}", target.as_raw_fd()),
        "ext4",
        flags,
        c"",
    )
    .map_err(at(format_args!("mount {} for modules", disk.device)))
}

fn find(serial: &str, uevents: &Uevents) -> Option<Disk> {
    uevents.wait_for(DEVICE_TIMEOUT, || {
        fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
            let read = |name: &str| fs::read_to_string(entry.path().join(name)).ok();
            if read("serial")?.trim() != serial {
                return None;
            }
            let device = format!("/dev/{}", entry.file_name().to_string_lossy());
            // sysfs counts in sectors of 512 bytes whatever the device's are.
            let bytes = read("size")?.trim().parse::<u64>().ok()?.checked_mul(512)?;
            OpenOptions::new().read(true).open(&device).ok()?;
            Some(Disk { device, bytes })
        })
    })
}
