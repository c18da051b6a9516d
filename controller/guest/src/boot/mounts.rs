//! The kernel's own file systems, and the move from the initrd to the root.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;

use rustix::fd::AsRawFd;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};

use super::failure::at;
use super::files::Root;

/// Where the root is mounted before it becomes the root.
pub const NEW_ROOT: &str = "/newroot";

/// Mounts /proc, /sys and /dev in the initrd.
pub fn early() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (source, target, flags) in [
        ("proc", "/proc", flags | MountFlags::NODEV),
        ("sysfs", "/sys", flags | MountFlags::NODEV),
        ("devtmpfs", "/dev", flags),
    ] {
        let _ = fs::create_dir(target);
        match mount(source, target, source, flags, c"") {
            // Somebody was faster: the kernel may mount /dev by itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(at(format_args!("mount {target}"))(errno)),
        }
    }
    fs::create_dir_all(NEW_ROOT)
}

/// Makes the mounted root the root: moves the kernel's file systems into it, empties the initrd
/// (its memory, and the configuration with its secrets, are gone), and changes over.
pub fn switch_root(root: Root) -> io::Result<()> {
    device_links()?;
    for (path, mode) in [("/dev", 0o755), ("/sys", 0o555), ("/proc", 0o555)] {
        let target = root.directory(path, mode)?;
        mount_move(path, format!("/proc/self/fd/{}", target.as_raw_fd()))
            .map_err(at(format_args!("move {path} into the root")))?;
    }
    drop(root);
    fs::remove_dir_all("/vmlet")?;
    let _ = fs::remove_file("/init");
    chdir(NEW_ROOT)?;
    mount_move(".", "/").map_err(at("move the root to /"))?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

/// What an entrypoint finds in a container too, and an init would have mounted by itself.
pub fn for_entrypoint() -> io::Result<()> {
    let _ = fs::create_dir_all("/sys/fs/cgroup");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount("cgroup2", "/sys/fs/cgroup", "cgroup2", flags, c"") {
        // Not every kernel has it, and few entrypoints want it.
        Ok(()) | Err(Errno::BUSY | Errno::NODEV | Errno::NOENT) => Ok(()),
        Err(errno) => Err(at("mount /sys/fs/cgroup")(errno)),
    }
}

/// devtmpfs knows devices only.
fn device_links() -> io::Result<()> {
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        let _ = symlink(target, link);
    }
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (source, target, flags, data) in [
        ("devpts", "/dev/pts", flags, c"mode=0620,gid=5,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", flags | MountFlags::NODEV, c"mode=1777"),
    ] {
        fs::create_dir_all(target)?;
        mount(source, target, source, flags, data).map_err(at(format_args!("mount {target}")))?;
    }
    Ok(())
}
