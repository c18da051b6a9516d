use super::elf::module_with;
use super::*;

fn indexed(files: &[(&str, Vec<u8>)]) -> BTreeMap<&'static str, Vec<u8>> {
    let mut indexer = Indexer::default();
    for (path, content) in files {
        let taken = indexer.file(path, content.len() as u64, &mut content.as_slice());
        taken.expect("taken");
    }
    indexer.finish().into_iter().collect()
}

fn lines_of(files: &BTreeMap<&str, Vec<u8>>, name: &str) -> Vec<String> {
    let all = String::from_utf8(files[name].clone()).expect("text");
    all.lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn module(info: &str) -> Vec<u8> {
    module_with(info.replace(' ', "\0").as_bytes(), &[])
}

#[test]
fn what_a_module_needs_stands_behind_it_in_the_reverse_order_of_loading() {
    let files = indexed(&[
        ("kernel/net/virtio_net.ko", module("depends=net-failover,virtio ")),
        ("kernel/net/net-failover.ko", module("depends=failover ")),
        ("kernel/virtio/virtio.ko", module("depends= ")),
        ("kernel/net/failover.ko", module("")),
        ("kernel/net/broken.ko", module("depends=absent,broken ")),
    ]);
    assert_eq!(
        lines_of(&files, "modules.dep"),
        [
            "kernel/net/broken.ko:",
            "kernel/net/failover.ko:",
            "kernel/net/net-failover.ko: kernel/net/failover.ko",
            "kernel/net/virtio_net.ko: kernel/virtio/virtio.ko kernel/net/net-failover.ko kernel/net/failover.ko",
            "kernel/virtio/virtio.ko:",
        ]
    );
}

#[test]
fn aliases_symbols_soft_dependencies_and_device_nodes_are_listed() {
    let info =
        b"alias=pci:v1d[a-b]*\0alias=char-major-10-200\0alias=devname:net/tun\0softdep=pre: b\0alias=two words\0";
    let files = indexed(&[("kernel/tun-x.ko", module_with(info, &["tun_get", "tun_put"]))]);
    assert_eq!(
        lines_of(&files, "modules.alias"),
        [
            "alias pci:v1d[a-b]* tun_x",
            "alias char-major-10-200 tun_x",
            "alias devname:net/tun tun_x"
        ]
    );
    assert_eq!(lines_of(&files, "modules.devname"), ["tun_x net/tun c10:200"]);
    assert_eq!(lines_of(&files, "modules.softdep"), ["softdep tun_x pre: b"]);
    assert_eq!(
        lines_of(&files, "modules.symbols"),
        ["alias symbol:tun_get tun_x", "alias symbol:tun_put tun_x"]
    );
}

#[test]
fn the_order_of_the_kernels_build_decides_and_compressed_modules_are_read() {
    let mut packed = zstd::stream::encode_all(module("depends= ").as_slice(), 1).expect("packs");
    let files = indexed(&[
        ("kernel/a.ko", module("")),
        ("kernel/b.ko.zst", std::mem::take(&mut packed)),
        ("modules.order", b"kernel/b.ko\nkernel/a.ko\n".to_vec()),
    ]);
    assert_eq!(lines_of(&files, "modules.dep"), ["kernel/b.ko.zst:", "kernel/a.ko:"]);
}

#[test]
fn a_package_that_was_indexed_keeps_its_own() {
    let files = indexed(&[("kernel/a.ko", module("")), ("modules.dep", b"kernel/a.ko:\n".to_vec())]);
    assert!(files.is_empty());
    assert!(indexed(&[("modules.order", Vec::new())]).is_empty());
}

#[test]
fn what_is_no_module_is_left_out() {
    let files = indexed(&[
        ("kernel/a.ko", module("")),
        ("kernel/b.ko", b"ELF".to_vec()),
        ("kernel/c.ko.xz", b"not xz".to_vec()),
        ("kernel/with blank.ko", module("")),
        ("README", b"text".to_vec()),
    ]);
    assert_eq!(lines_of(&files, "modules.dep"), ["kernel/a.ko:"]);
    let mut indexer = Indexer::default();
    indexer
        .file("kernel/x.ko", MAX_FILE + 1, &mut io::repeat(0))
        .expect("not read");
    assert!(indexer.finish().is_empty());
}

/// Against the real one, where both it and a kernel are there: `VMLET_TEST_MODULES` (tar of
/// lib/modules/VERSION) and `VMLET_TEST_DEPMOD` (the program).
#[test]
fn depmod_says_the_same_of_a_real_kernel() {
    let path = |name: &str| {
        std::env::var_os(name)
            .map(std::path::PathBuf::from)
            .filter(|p| p.exists())
    };
    let depmod =
        path("VMLET_TEST_DEPMOD").or_else(|| Some("/sbin/depmod".into()).filter(|p: &std::path::PathBuf| p.exists()));
    let (Some(tar), Some(depmod)) = (path("VMLET_TEST_MODULES"), depmod) else {
        println!("skipped: no VMLET_TEST_MODULES or no depmod");
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let mut indexer = Indexer::default();
    let mut version = String::new();
    let file = || std::fs::File::open(&tar).expect("opens");
    for entry in tar::Archive::new(file()).entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a path").to_string_lossy().into_owned();
        let mut parts = name.splitn(4, '/').skip(2);
        if let (Some(first), Some(path), true) = (parts.next(), parts.next(), entry.header().entry_type().is_file()) {
            version = first.to_owned();
            let size = entry.size();
            indexer.file(path, size, &mut entry).expect("taken");
        }
    }
    tar::Archive::new(file()).unpack(dir.path()).expect("unpacks");
    let done = std::process::Command::new(depmod)
        .arg("-b")
        .arg(dir.path())
        .arg(&version)
        .status();
    assert!(done.expect("runs").success());
    let ours: BTreeMap<_, _> = indexer.finish().into_iter().collect();
    let theirs = |name: &str| std::fs::read(dir.path().join("lib/modules").join(&version).join(name)).expect(name);
    // Of several modules that need nothing of each other any may stand first; the same holds for aliases.
    let words = |bytes: &[u8]| -> BTreeSet<Vec<String>> {
        let all = String::from_utf8(bytes.to_vec()).expect("text");
        all.lines()
            .map(|line| {
                let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
                words[1..].sort();
                words
            })
            .collect()
    };
    for name in [
        "modules.dep",
        "modules.alias",
        "modules.symbols",
        "modules.softdep",
        "modules.devname",
    ] {
        let (ours, theirs) = (words(&ours[name]), words(&theirs(name)));
        let differ: Vec<_> = ours.symmetric_difference(&theirs).take(5).collect();
        assert!(differ.is_empty(), "{name}: {differ:?}");
    }
    for name in [
        "modules.alias.bin",
        "modules.symbols.bin",
        "modules.builtin.bin",
        "modules.builtin.alias.bin",
        "modules.alias",
        "modules.softdep",
        "modules.devname",
    ] {
        assert!(ours[name] == theirs(name), "{name}");
    }
    assert_eq!(ours["modules.dep.bin"].len(), theirs("modules.dep.bin").len());
}
