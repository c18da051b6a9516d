//! Process 1 of the guest that looks at the images: it loads modules, mounts each disk, says what it finds, grows, writes,
//! deletes, and writes its report to the first disk. Compiled by the test with nothing but the standard library. Each
//! disk has a process and a mount name space of its own, all at the same time: growing one takes as long as the others.
//!
//! `/tasks` names the disks, one a line: `vdb tree` lists everything; `churn` behind it removes all of it afterwards and
//! writes anew; `count` looks up all names of two large directories; `grow` makes the file system as large as its disk first; `deep` only counts levels.

#[path = "../common/inventory.rs"]
mod inventory;

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, c_char, c_int, c_long, c_ulong, c_void};
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Instant, UNIX_EPOCH};

use inventory::{BLOCK, Content, Entry, lines};

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn umount2(target: *const c_char, flags: c_int) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn reboot(command: c_int) -> c_int;
    fn unshare(flags: c_int) -> c_int;
    fn llistxattr(path: *const c_char, list: *mut u8, size: usize) -> isize;
    fn lgetxattr(path: *const c_char, name: *const c_char, value: *mut u8, size: usize) -> isize;
    fn lseek(file: c_int, offset: i64, whence: c_int) -> i64;
    fn ioctl(file: c_int, request: c_ulong, ...) -> c_int;
    fn statvfs(path: *const c_char, figures: *mut u64) -> c_int;
    fn sync();
}

const FINIT_MODULE: c_long = 313;
const MS_NOATIME: c_ulong = 1024;
const CLONE_NEWNS: c_int = 0x2_0000;
const SEEK_DATA: c_int = 3;
const SEEK_HOLE: c_int = 4;
const EXT4_IOC_RESIZE_FS: c_ulong = 0x4008_6610;
const O_NONBLOCK: i32 = 0o4000;
const MNT: &str = "/mnt";

type Done = Result<(), String>;

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        // As another user: whether a file can be read, and which capabilities this process has.
        Some("read") => {
            let readable = arguments.next().is_some_and(|path| File::open(path).is_ok());
            std::process::exit(if readable { 0 } else { 1 });
        }
        Some("capabilities") => {
            let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
            print!(
                "{}",
                status
                    .lines()
                    .find(|line| line.starts_with("CapEff"))
                    .unwrap_or_default()
            );
            std::process::exit(0);
        }
        Some("disk") => {
            let task = arguments.next().unwrap_or_default();
            let mut report = String::new();
            if let Err(error) = disk(&task, &mut report) {
                let _ = writeln!(report, "FAILED {error}");
            }
            let done = fs::write(report_of(&task), report);
            std::process::exit(if done.is_ok() { 0 } else { 1 });
        }
        _ => {}
    }
    let mut report = String::new();
    if let Err(error) = all(&mut report) {
        let _ = writeln!(report, "FAILED {error}");
    }
    // What the kernel complains about counts as a failure.
    for line in kernel_log().lines() {
        let said = line.split_once(';').map_or(line, |(_, said)| said);
        if said.contains("EXT4-fs error")
            || said.contains("EXT4-fs warning")
            || said.contains("EXT4-fs (") && said.contains("rror")
        {
            let _ = writeln!(report, "FAILED kernel: {said}");
        }
    }
    report += "END\n";
    report += &" ".repeat(report.len().next_multiple_of(512) - report.len());
    match File::options()
        .write(true)
        .open("/dev/vda")
        .and_then(|disk| disk.write_all_at(report.as_bytes(), 0))
    {
        Ok(()) => println!("guest: report of {} bytes", report.len()),
        Err(error) => println!("guest: no report: {error}\n{report}"),
    }
    // SAFETY: they take no pointers. A restart is what ends this QEMU.
    unsafe {
        sync();
        reboot(0x0123_4567);
    }
}

fn all(report: &mut String) -> Done {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        let _ = fs::create_dir_all(target);
        mount_at("none", target, kind)?;
    }
    load_modules()?;
    fs::create_dir_all(MNT).map_err(|error| error.to_string())?;
    let tasks = fs::read_to_string("/tasks").map_err(|error| format!("/tasks: {error}"))?;
    let start = |task| {
        Command::new("/init")
            .args(["disk", task])
            .spawn()
            .map(|child| (task, child))
    };
    let children: io::Result<Vec<_>> = tasks.lines().map(start).collect();
    for (task, mut child) in children.map_err(|error| format!("/init: {error}"))? {
        let part = child.wait().and_then(|_| fs::read_to_string(report_of(task)));
        *report += &part.map_err(|error| format!("{task}: {error}"))?;
    }
    Ok(())
}

fn report_of(task: &str) -> String {
    format!("/report.{}", task.split(' ').next().unwrap_or_default())
}

/// All that is to be done with one disk.
fn disk(task: &str, report: &mut String) -> Done {
    // SAFETY: it takes no pointers. What is mounted from now on is seen by this process and its children only.
    if unsafe { unshare(CLONE_NEWNS) } != 0 {
        return Err(format!("unshare: {}", io::Error::last_os_error()));
    }
    let mut words = task.split_whitespace();
    let disk = words.next().unwrap_or_default();
    let _ = writeln!(report, "DISK {disk}");
    let device = format!("/dev/{disk}");
    mount_at(&device, MNT, "ext4")?;
    for word in words {
        let begin = Instant::now();
        step(word, &device, report).map_err(|error| format!("{disk} {word}: {error}"))?;
        println!("guest: {disk} {word} took {:.1?}", begin.elapsed());
    }
    unmount()
}

fn step(word: &str, device: &str, report: &mut String) -> Done {
    let text = |error: io::Error| error.to_string();
    match word {
        "tree" => {
            for line in lines(&tree().map_err(text)?) {
                let _ = writeln!(report, "{line}");
            }
        }
        "deep" => {
            let mut levels = 0;
            std::env::set_current_dir(MNT).map_err(text)?;
            while std::env::set_current_dir("deeper").is_ok() {
                levels += 1;
            }
            std::env::set_current_dir("/").map_err(text)?;
            let _ = writeln!(report, "levels={levels}");
        }
        "count" => count(report).map_err(text)?,
        "rights" => rights(report).map_err(text)?,
        "grow" => {
            let mut bytes = File::open(device).map_err(text)?;
            let size = io::Seek::seek(&mut bytes, io::SeekFrom::End(0)).map_err(text)?;
            let root = File::open(MNT).map_err(text)?;
            let blocks = size / BLOCK as u64;
            // SAFETY: the request reads one 64-bit number.
            if unsafe { ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS, &blocks) } != 0 {
                return Err(format!("resize to {blocks} blocks: {}", io::Error::last_os_error()));
            }
            let mut figures = [0u64; 32];
            // SAFETY: struct statvfs has 112 bytes.
            if unsafe { statvfs(c"/mnt".as_ptr(), figures.as_mut_ptr()) } != 0 {
                return Err(io::Error::last_os_error().to_string());
            }
            let _ = writeln!(report, "blocks={} inodes={}", figures[2], figures[5]);
        }
        "churn" => churn(device).map_err(text)?,
        other => return Err(format!("what is {other}?")),
    }
    Ok(())
}

/// Lists the root and `/many`, and finds one name in eight by itself.
fn count(report: &mut String) -> io::Result<()> {
    for name in ["", "many"] {
        let directory = Path::new(MNT).join(name);
        let (mut names, mut links_of, mut inodes) = (0, 0, BTreeMap::new());
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_name() == "lost+found" {
                continue;
            }
            names += 1;
            *inodes.entry(entry.ino()).or_insert(0u64) += 1;
            if names % 8 > 0 {
                continue;
            }
            let meta = entry.path().symlink_metadata()?;
            if meta.ino() != entry.ino() {
                return Err(io::Error::other(format!("{:?} is found as another", entry.path())));
            }
            if meta.is_file() || meta.file_type().is_socket() {
                links_of = meta.nlink();
            }
        }
        let same = inodes.values().max().copied().unwrap_or_default();
        let links = directory.symlink_metadata()?.nlink();
        let _ = writeln!(
            report,
            "/{name} names={names} links={links} same={same} said={links_of}"
        );
    }
    Ok(())
}

/// What users other than root may do by access lists and file capabilities.
fn rights(report: &mut String) -> io::Result<()> {
    let acls = Path::new(MNT).join("acl");
    for (uid, gid) in [(1000, 999), (1001, 999), (1002, 2000), (1003, 999)] {
        let status = Command::new("/init")
            .arg("read")
            .arg(&acls)
            .uid(uid)
            .gid(gid)
            .status()?;
        let _ = writeln!(report, "{uid}:{gid} reads {}", status.success());
    }
    let output = Command::new(Path::new(MNT).join("program"))
        .arg("capabilities")
        .uid(1000)
        .gid(1000)
        .output()?;
    let _ = writeln!(report, "program {}", String::from_utf8_lossy(&output.stdout).trim());
    Ok(())
}

/// Removes everything, then writes, appends, removes, and reads back after another mount.
fn churn(device: &str) -> io::Result<()> {
    for entry in fs::read_dir(MNT)? {
        let path = entry?.path();
        if path.symlink_metadata()?.is_dir() {
            fs::remove_dir_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    let new = Path::new(MNT).join("new");
    fs::create_dir(&new)?;
    let content = |number: usize| vec![number as u8 | 1; number * 97];
    for number in 0..300 {
        fs::write(new.join(format!("file {number}")), content(number))?;
    }
    fs::write(new.join("large"), vec![0xa5; 2 << 20])?;
    for number in (0..300).step_by(2) {
        fs::remove_file(new.join(format!("file {number}")))?;
    }
    unmount().map_err(io::Error::other)?;
    mount_at(device, MNT, "ext4").map_err(io::Error::other)?;
    for number in (1..300).step_by(2) {
        if fs::read(new.join(format!("file {number}")))? != content(number) {
            return Err(io::Error::other(format!("file {number} is another")));
        }
    }
    if fs::read(new.join("large"))? != vec![0xa5; 2 << 20] {
        return Err(io::Error::other("the large file is another"));
    }
    Ok(())
}

fn tree() -> io::Result<BTreeMap<Vec<u8>, Entry>> {
    let root = Path::new(MNT);
    let mut tree = BTreeMap::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or_default()));
        let meta = full.symlink_metadata()?;
        if meta.is_dir() {
            for entry in fs::read_dir(&full)? {
                let name = entry?.file_name();
                if !(path.is_empty() && name == "lost+found") {
                    todo.push([&path[..], b"/", name.as_bytes()].concat());
                }
            }
        }
        let entry = describe(&full, &meta)?;
        tree.insert(path, entry);
    }
    Ok(tree)
}

fn describe(path: &Path, meta: &Metadata) -> io::Result<Entry> {
    let kind = meta.file_type();
    let kind = match () {
        () if kind.is_dir() => 'd',
        () if kind.is_symlink() => 'l',
        () if kind.is_file() => '-',
        () if kind.is_fifo() => 'p',
        () if kind.is_socket() => 's',
        () if kind.is_char_device() => 'c',
        () => 'b',
    };
    let born = meta.created()?;
    let born = match born.duration_since(UNIX_EPOCH) {
        Ok(after) => (after.as_secs() as i64, after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            match before.subsec_nanos() {
                0 => (-(before.as_secs() as i64), 0),
                nanoseconds => (-(before.as_secs() as i64) - 1, 1_000_000_000 - nanoseconds),
            }
        }
    };
    let number = meta.rdev();
    let device = (
        (number >> 8 & 0xfff) as u32,
        (number & 0xff | number >> 12 & 0xf_ff00) as u32,
    );
    Ok(Entry {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        links: meta.nlink(),
        size: if kind == 'd' { 0 } else { meta.len() },
        device: if matches!(kind, 'b' | 'c') { device } else { (0, 0) },
        times: [
            (meta.atime(), meta.atime_nsec() as u32),
            (meta.mtime(), meta.mtime_nsec() as u32),
            (meta.ctime(), meta.ctime_nsec() as u32),
            born,
        ],
        inode: meta.ino(),
        xattrs: xattrs(path)?,
        content: if kind == '-' {
            content(path)?
        } else {
            Content::default()
        },
        target: if kind == 'l' {
            fs::read_link(path)?.as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        },
    })
}

/// The blocks that Linux says are data.
fn content(path: &Path) -> io::Result<Content> {
    let mut content = Content::default();
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut at = 0;
    loop {
        // SAFETY: it takes no pointers.
        let start = unsafe { lseek(file.as_raw_fd(), at, SEEK_DATA) };
        if start < 0 {
            return Ok(content);
        }
        // SAFETY: as above.
        let end = unsafe { lseek(file.as_raw_fd(), start, SEEK_HOLE) };
        for offset in (start..end).step_by(BLOCK) {
            let mut block = vec![0; (BLOCK as u64).min(size - offset as u64) as usize];
            file.read_exact_at(&mut block, offset as u64)?;
            content.block(offset as u64 / BLOCK as u64, &block);
        }
        at = end;
    }
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let path = c_string(path.as_os_str().as_bytes());
    let mut found = BTreeMap::new();
    let mut names = vec![0; 65536];
    // SAFETY: the buffer is as long as it is said to be.
    let length = unsafe { llistxattr(path.as_ptr(), names.as_mut_ptr(), names.len()) };
    names.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let text = c_string(name);
        // SAFETY: as above.
        let length = unsafe { lgetxattr(path.as_ptr(), text.as_ptr(), value.as_mut_ptr(), value.len()) };
        let failed = |_| {
            io::Error::other(format!(
                "{path:?} {}: {}",
                name.escape_ascii(),
                io::Error::last_os_error()
            ))
        };
        value.truncate(usize::try_from(length).map_err(failed)?);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

/// Loads what is in `/modules`, in any order: rounds, until nothing more can be loaded.
fn load_modules() -> Done {
    let directory = fs::read_dir("/modules").map_err(|error| format!("/modules: {error}"))?;
    let mut waiting: Vec<_> = directory.filter_map(|entry| Some(entry.ok()?.path())).collect();
    loop {
        let before = waiting.len();
        waiting.retain(|path| {
            let Ok(file) = File::open(path) else { return true };
            // SAFETY: the file is open, and the parameters are an empty string.
            unsafe { syscall(FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), 0 as c_int) != 0 }
        });
        if waiting.len() == before || waiting.is_empty() {
            // A module for another processor does not load, and is not needed.
            println!("guest: not loaded: {waiting:?}");
            return Ok(());
        }
    }
}

fn kernel_log() -> String {
    let mut log = String::new();
    let Ok(mut file) = File::options().read(true).custom_flags(O_NONBLOCK).open("/dev/kmsg") else {
        return "EXT4-fs error: no /dev/kmsg".to_owned();
    };
    let mut record = vec![0; 8192];
    while let Ok(length) = file.read(&mut record) {
        log += &String::from_utf8_lossy(&record[..length]);
    }
    log
}

fn mount_at(source: &str, target: &str, kind: &str) -> Done {
    let [from, to, by] = [source, target, kind].map(|text| c_string(text.as_bytes()));
    // As vmlet mounts it: nothing is zeroed behind our back in what a growing file system gains.
    let options = if kind == "ext4" { c"noinit_itable" } else { c"" };
    // SAFETY: four strings.
    if unsafe {
        mount(
            from.as_ptr(),
            to.as_ptr(),
            by.as_ptr(),
            MS_NOATIME,
            options.as_ptr().cast(),
        )
    } == 0
    {
        return Ok(());
    }
    Err(format!("mount {source}: {}", io::Error::last_os_error()))
}

fn unmount() -> Done {
    // SAFETY: a string.
    if unsafe { umount2(c"/mnt".as_ptr(), 0) } == 0 {
        return Ok(());
    }
    Err(format!("unmount: {}", io::Error::last_os_error()))
}

fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap_or_default()
}
