//! What a real Linux finds on the disks: one boot of QEMU mounts every fixture, compares everything, grows it (two of them to
//! a terabyte), compares again, removes and writes; then e2fsck looks again. Needs QEMU, rustc, and a kernel with ext4:
//! `VMLET_TEST_KERNEL` (bzImage) and `VMLET_TEST_MODULES` (tar of lib/modules/VERSION).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use common::inventory::lines;
use common::model::{Model, Piece, What, acl, any_model, capability};
use common::*;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tempfile::{NamedTempFile, TempDir};
use vmlet_ext4::{Attributes, FreeSpace, Kind, NodeId, Size, Timestamp, Tree};

/// A disk, what the guest shall do with it, and what it must say.
struct Fixture {
    file: NamedTempFile,
    task: String,
    says: Vec<String>,
}

#[test]
fn linux_finds_what_was_given_grows_it_to_a_terabyte_and_writes_on() {
    let Some(kernel) = environment("VMLET_TEST_KERNEL").zip(environment("VMLET_TEST_MODULES")) else {
        println!("skipped: VMLET_TEST_KERNEL and VMLET_TEST_MODULES name no files");
        return;
    };
    let Some(qemu) = tool("qemu-system-x86_64") else { return };
    let directory = TempDir::new().unwrap();
    let (program, fixtures) = std::thread::scope(|scope| {
        let program = scope.spawn(|| compile(directory.path()));
        let others = [
            grown(modelled(random(250), Size::Fixed(400 * MIB), "tree churn"), PARTIAL),
            grown(modelled(random(250), automatic(), "tree churn"), SIXTEENTH),
            grown(modelled(large_files(), automatic(), "tree churn"), PARTIAL),
            grown(wide(), TERABYTE),
            grown(deep(), SIXTEENTH),
        ];
        let program = program.join().unwrap();
        let mut fixtures = vec![grown(special(&std::fs::read(&program).unwrap()), TERABYTE)];
        fixtures.extend(others);
        (program, fixtures)
    });
    let report = boot(&qemu, &kernel, &program, &fixtures, directory.path());
    let mut disks = report.split("DISK ").skip(1);
    for (fixture, letter) in fixtures.iter().zip('b'..) {
        let part = disks
            .next()
            .unwrap_or_else(|| panic!("the guest stopped early: {report:.3000}"));
        let mut found = part.lines();
        assert_eq!(found.next(), Some(&*format!("vd{letter}")));
        let mut found = found.take_while(|line| *line != "END");
        for line in &fixture.says {
            assert_eq!(found.next(), Some(&**line));
        }
        assert_eq!(found.next(), None);
    }
    std::thread::scope(|scope| {
        for fixture in &fixtures {
            scope.spawn(|| check(fixture.file.path()));
        }
    });
    assert!(!report.contains("FAILED"), "{report:.3000}");
}

fn environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists())
}

fn automatic() -> Size {
    let free = FreeSpace {
        percent: 10,
        bytes: 40 * MIB,
    };
    Size::Auto { free }
}

fn modelled(model: Model, size: Size, task: &str) -> Fixture {
    let (file, mut writer) = image(size);
    let tree = model.write(&mut writer);
    finish(&file, writer, tree);
    Fixture {
        file,
        task: task.to_owned(),
        says: lines(&model.expected()),
    }
}

/// Any tree, always the same for a number of things in it.
fn random(items: usize) -> Model {
    let mut runner = TestRunner::deterministic();
    any_model(items).new_tree(&mut runner).unwrap().current()
}

/// Everything that an inode can have, by hand.
fn special(program: &[u8]) -> Fixture {
    let mut model = Model::new(attributes(0o1751));
    let none = u32::MAX;
    let entries = [
        (1, 6, none),
        (2, 4, 1000),
        (2, 7, 1001),
        (4, 0, none),
        (8, 4, 2000),
        (16, 5, none),
        (32, 0, none),
    ];
    let access = acl(&entries);
    let with_acl = vec![(b"system.posix_acl_access".to_vec(), access.clone())];
    model.root_xattrs = vec![(b"user.root".to_vec(), b"yes".to_vec())];
    model.push(
        b"acl",
        What::File(vec![Piece::Data(b"secret".to_vec())]),
        attributes(0o650),
        with_acl,
    );
    let both = ["access", "default"].map(|kind| (format!("system.posix_acl_{kind}").into_bytes(), access.clone()));
    model.push(b"shared", What::Directory, attributes(0o2770), both.to_vec());
    let capable = vec![(b"security.capability".to_vec(), [capability(0x400)].concat())];
    model.push(
        b"program",
        What::File(vec![Piece::Data(program.to_vec())]),
        attributes(0o755),
        capable,
    );
    model.push(b"again", What::Link(1), attributes(0), vec![]);
    let times = Attributes {
        mode: 0o4674,
        uid: 100_000,
        gid: 4_294_967_294,
        atime: Timestamp {
            sec: 5_000_000_000,
            nsec: 1,
        },
        mtime: Timestamp {
            sec: -5,
            nsec: 999_999_999,
        },
        ctime: Timestamp {
            sec: 0x3_7fff_ffff,
            nsec: 3,
        },
        crtime: Timestamp {
            sec: -0x8000_0000,
            nsec: 4,
        },
    };
    let xattrs = vec![
        (b"trusted.binary".to_vec(), (0..=255).collect()),
        (b"user.empty".to_vec(), vec![]),
        (b"user.block".to_vec(), vec![0xa5; 3000]),
        (
            b"user.large".to_vec(),
            (0..65_536u32).map(|n| (n * 7 / 3) as u8).collect(),
        ),
    ];
    model.push(b"times", What::File(vec![]), times, xattrs.clone());
    for (name, what) in [
        (&b"disk"[..], What::Block(8, 1)),
        (b"null", What::Character(1, 3)),
        (b"far", What::Character(4095, 1_048_575)),
        (b"wide", What::Block(300, 70_000)),
        (b"pipe", What::Fifo),
        (b"socket", What::Socket),
        (b"inline", What::Symlink(vec![b'i'; 59])),
        (b"block", What::Symlink(vec![b'b'; 60])),
        (b"longest", What::Symlink(vec![b'l'; 4095])),
        (&[0xff; 255], What::Fifo),
        (b" \n\\\x01", What::Fifo),
    ] {
        let trusted = xattrs
            .iter()
            .filter(|(name, _)| name.starts_with(b"trusted."))
            .cloned()
            .collect();
        model.push(name, what, attributes(0o600), trusted);
    }
    let mut fixture = modelled(model, Size::Fixed(256 * MIB), "tree rights churn");
    // 1000 is named, 1001 too but masked, 2000 is a named group.
    let rights = [
        "1000:999 reads true",
        "1001:999 reads true",
        "1002:2000 reads true",
        "1003:999 reads false",
    ];
    fixture.says.extend(rights.map(String::from));
    fixture.says.push("program CapEff:\t0000000000000400".to_owned());
    fixture
}

/// A size in bytes, and what Linux finds in a file system that was grown to it.
type Grown = (u64, &'static str);

/// What remains of 2^28 blocks: the inode tables of 8192 groups, and what else a group keeps. It takes a guest half a
/// minute, and twice that for all fixtures; so most of them grow less far.
const TERABYTE: Grown = (1 << 40, "blocks=264205933 inodes=67108864");
const SIXTEENTH: Grown = (1 << 36, "blocks=16495987 inodes=4194304");
/// The last group is no whole one.
const PARTIAL: Grown = ((10 << 30) + 37 * MIB, "blocks=2571733 inodes=663552");

/// The same fixture, grown while it is mounted: all that was there is there afterwards, and before all is removed.
fn grown(mut fixture: Fixture, (size, found): Grown) -> Fixture {
    let whole = fixture.task.clone();
    let (looks, removes) = whole.split_at(whole.find(" churn").unwrap_or(whole.len()));
    fixture.task = format!("{looks} grow {looks}{removes}");
    let says = fixture.says.clone();
    fixture.says.push(found.to_owned());
    fixture.says.extend(says);
    fixture.file.as_file().set_len(size).unwrap();
    fixture
}

/// Files with holes everywhere, a deep extent tree, and one at the end of what can be counted.
fn large_files() -> Model {
    let mut model = Model::new(attributes(0o755));
    let file = |model: &mut Model, name: &[u8], pieces| model.push(name, What::File(pieces), attributes(0o644), vec![]);
    let pieces = (0..2000).flat_map(|n| [Piece::Bytes(n as u8 | 1, 4096), Piece::Hole(4096)]);
    file(&mut model, b"pieces", pieces.collect());
    let far = vec![
        Piece::Data(b"begin".to_vec()),
        Piece::Hole((1 << 40) - 7),
        Piece::Data(b"end".to_vec()),
    ];
    file(&mut model, b"far", far);
    file(&mut model, b"hole", vec![Piece::Hole(1 << 33)]);
    file(
        &mut model,
        b"zeroes",
        vec![Piece::Bytes(0, 3_000_000), Piece::Bytes(1, 1)],
    );
    file(&mut model, b"long", vec![Piece::Bytes(7, 40 << 20)]);
    model
}

/// More subdirectories than a link count can say, and many names in an index.
fn wide() -> Fixture {
    let mut model = Model::new(attributes(0o755));
    model.push(b"d", What::Directory, attributes(0o755), vec![]);
    model.push(b"f", What::Socket, attributes(0o600), vec![]);
    for number in 0..20_000 {
        model.push(
            format!("link {number}").as_bytes(),
            What::Link(0),
            attributes(0),
            vec![],
        );
    }
    let (file, mut writer) = image(automatic());
    let mut tree = model.write(&mut writer);
    let many = put(&mut tree, NodeId::ROOT, b"many", Kind::Directory).unwrap();
    for number in 0..66_000 {
        put(&mut tree, many, format!("{number}").as_bytes(), Kind::Directory).unwrap();
    }
    finish(&file, writer, tree);
    Fixture {
        file,
        task: "count".to_owned(),
        says: vec![
            "/ names=20003 links=5 same=20001 said=20001".to_owned(),
            "/many names=66000 links=1 same=1 said=0".to_owned(),
        ],
    }
}

fn deep() -> Fixture {
    let (file, writer) = image(automatic());
    let mut tree = Tree::new(attributes(0o755));
    let mut at = NodeId::ROOT;
    for _ in 0..2000 {
        at = put(&mut tree, at, b"deeper", Kind::Directory).unwrap();
    }
    finish(&file, writer, tree);
    Fixture {
        file,
        task: "deep".to_owned(),
        says: vec!["levels=2000".to_owned()],
    }
}

/// The guest's program, static, so that it needs nothing else.
fn compile(directory: &Path) -> PathBuf {
    let rustc = std::env::var_os("CARGO").map(|cargo| PathBuf::from(cargo).with_file_name("rustc"));
    let rustc = rustc.filter(|path| path.exists()).unwrap_or_else(|| "rustc".into());
    let program = directory.join("init");
    let output = Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "panic=abort",
        ])
        .args(["-C", "strip=symbols", "-o"])
        .arg(&program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.rs"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    program
}

/// Process 1, its tasks, and the modules that a disk may need.
fn initrd(program: &Path, modules: &Path, fixtures: &[Fixture]) -> Vec<u8> {
    const WANTED: [&str; 12] = [
        "virtio",
        "virtio_ring",
        "virtio_pci_legacy_dev",
        "virtio_pci_modern_dev",
        "virtio_pci",
        "virtio_blk",
        "crc16",
        "crc32c_generic",
        "libcrc32c",
        "mbcache",
        "jbd2",
        "ext4",
    ];
    let mut cpio = vmlet_init::cpio::Writer::new();
    for directory in ["dev", "proc", "sys", "mnt", "modules"] {
        cpio.directory(directory, 0o755);
    }
    cpio.file("init", 0o755, &std::fs::read(program).unwrap());
    let tasks = fixtures
        .iter()
        .zip('b'..)
        .map(|(fixture, letter)| format!("vd{letter} {}\n", fixture.task));
    cpio.file("tasks", 0o644, tasks.collect::<String>().as_bytes());
    let mut archive = tar::Archive::new(File::open(modules).unwrap());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let name = path.file_stem().unwrap_or_default().to_str().unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "ko") && WANTED.contains(&name) {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            cpio.file(&format!("modules/{name}.ko"), 0o644, &content);
        }
    }
    cpio.finish()
}

/// One boot; gives the guest's report.
fn boot(qemu: &Path, kernel: &(PathBuf, PathBuf), program: &Path, fixtures: &[Fixture], directory: &Path) -> String {
    let report = directory.join("report");
    File::create(&report).unwrap().set_len(64 * MIB).unwrap();
    let initial = directory.join("initrd");
    std::fs::write(&initial, initrd(program, &kernel.1, fixtures)).unwrap();
    let console = directory.join("console");
    let mut command = Command::new(qemu);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-machine",
        "q35",
    ]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "768"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.arg("-kernel").arg(&kernel.0).arg("-initrd").arg(&initial);
    command.args(["-append", "console=ttyS0 panic=-1 quiet loglevel=4 no_timer_check"]);
    let disks = std::iter::once(&*report).chain(fixtures.iter().map(|fixture| fixture.file.path()));
    for (disk, number) in disks.zip(0..) {
        let drive = format!("if=none,id=d{number},format=raw,cache=unsafe,file={}", disk.display());
        command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive=d{number}")]);
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let (ended, wait) = channel::<()>();
    let watch = std::thread::spawn(move || {
        if wait.recv_timeout(Duration::from_secs(400)) == Err(RecvTimeoutError::Timeout) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(ended);
    watch.join().unwrap();
    let console = String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).into_owned();
    assert!(output.status.success(), "{}\n{console}", text(&output));
    // Where its time went, for those who look.
    print!("{console}");
    let report = String::from_utf8_lossy(&std::fs::read(report).unwrap()).into_owned();
    match report.split_once("\nEND\n") {
        Some((report, _)) => format!("{report}\nEND\n"),
        None => panic!("no report\n{console}"),
    }
}
