//! Any tree: what a reader finds on the disk is what was given, and e2fsck has nothing to say.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::io::Write;
use std::process::Command;

use common::inventory::lines;
use common::model::{Model, Piece, What, any_model, cases};
use common::reader::Image;
use common::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tempfile::NamedTempFile;
use vmlet_ext4::{FreeSpace, Size};

fn write(model: &Model, size: Size) -> NamedTempFile {
    let (file, mut writer) = image(size);
    let tree = model.write(&mut writer);
    finish(&file, writer, tree);
    file
}

/// The bytes of an image that are not zero, block by block, without reading its holes.
fn blocks(file: &NamedTempFile) -> Vec<(u64, Vec<u8>)> {
    use rustix::fs::{SeekFrom, seek};
    use std::os::unix::fs::FileExt;
    let file = file.as_file();
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek(file, SeekFrom::Data(at)) {
        let end = seek(file, SeekFrom::Hole(start)).unwrap();
        for offset in (start..end).step_by(4096) {
            let mut block = vec![0; 4096.min((end - offset) as usize)];
            file.read_exact_at(&mut block, offset).unwrap();
            if block.iter().any(|byte| *byte != 0) {
                found.push((offset, block));
            }
        }
        at = end;
    }
    found
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn any_tree_is_clean_and_reads_back_as_it_was_given(model in any_model(0..60), fixed in any::<bool>()) {
        let size = if fixed { Size::Fixed(300 * MIB) } else { Size::Auto { free: FreeSpace { percent: 10, bytes: MIB } } };
        let file = write(&model, size);
        let (found, expected) = (lines(&Image::open(file.path()).tree()), lines(&model.expected()));
        prop_assert_eq!(found, expected);
        let again = write(&model, size);
        prop_assert!(blocks(&file) == blocks(&again), "the same calls gave other bytes");
    }
}

/// A large tree, always the same, that debugfs can say: its names have no line ends, its files are short.
fn debugfs_model() -> Model {
    let mut runner = TestRunner::deterministic();
    let mut model = any_model(400).new_tree(&mut runner).unwrap().current();
    for item in &mut model.items {
        item.name = item.name.iter().take(60).map(|byte| byte % 26 + b'a').collect();
        if let What::File(pieces) = &mut item.what {
            pieces.retain(|piece| !matches!(piece, Piece::Hole(100_000..)));
        }
    }
    model
}

#[test]
fn debugfs_finds_what_was_given() {
    let Some(debugfs) = tool("debugfs") else { return };
    let model = debugfs_model();
    let file = write(&model, Size::Fixed(300 * MIB));
    let image = Image::open(file.path());
    let (found, expected) = (image.tree(), model.expected());
    assert!(expected.len() > 200, "{}", expected.len());

    // One process for all requests; it prints each before its answer.
    let mut requests = Vec::new();
    for (path, entry) in &expected {
        let path = format!("/{}", String::from_utf8_lossy(path).trim_start_matches('/'));
        let inode = found[path.trim_end_matches('/').as_bytes()].inode;
        let mode = format!("{:04o}   Flags: ", entry.mode);
        let [atime, mtime, ctime, crtime] = entry.times.map(|(seconds, nanoseconds)| {
            let epoch = ((seconds - i64::from(seconds as i32)) >> 32) as u32 & 3;
            format!("time: 0x{:08x}:{:08x}", seconds as u32, nanoseconds << 2 | epoch)
        });
        let mut says = vec![
            format!("Inode: {inode} "),
            mode,
            // It prints ids as signed numbers.
            format!("User: {:5}   Group: {:5}", entry.uid as i32, entry.gid as i32),
            format!("Links: {} ", entry.links),
            format!("a{atime} "),
            format!("m{mtime} "),
            format!("c{ctime} "),
            format!("cr{crtime} "),
        ];
        if entry.kind != 'd' {
            says.push(format!("Size: {}\n", entry.size));
        }
        if matches!(entry.kind, 'b' | 'c') {
            says.push(format!(
                "major/minor number: {:02}:{:02} ",
                entry.device.0, entry.device.1
            ));
        }
        requests.push((format!("stat {path}"), says));
        for (name, value) in &entry.xattrs {
            let name = String::from_utf8_lossy(name);
            let mut value = value.clone();
            if name.starts_with("system.posix_acl_") {
                // An id that means nothing is 0 there.
                let entries = value[4..].as_chunks_mut::<8>().0.iter_mut();
                entries
                    .filter(|entry| !matches!(entry[0], 0x02 | 0x08))
                    .for_each(|entry| entry[4..].fill(0));
            }
            let bytes: Vec<String> = value.iter().map(|byte| format!("{byte:02x}")).collect();
            let says = format!("{name} ({}) = {}", value.len(), bytes.join(" "));
            requests.push((
                format!("ea_get -x <{inode}> {name}"),
                vec![says.trim_end_matches(" = ").to_owned()],
            ));
        }
        if entry.kind == '-' && entry.size < 200_000 {
            // Its bytes are compared with those of the reader, whose sums are compared with the model.
            let bytes = image.content(&image.inode(inode as u32));
            requests.push((
                format!("cat {path}"),
                vec![String::from_utf8_lossy(&bytes).into_owned()],
            ));
        }
    }
    assert_eq!(lines(&found), lines(&expected));
    let mut script = tempfile::NamedTempFile::new().unwrap();
    for (request, _) in &requests {
        writeln!(script, "{request}").unwrap();
    }
    let output = Command::new(debugfs)
        .arg("-f")
        .arg(script.path())
        .arg(file.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let mut rest = &text[..];
    for (request, says) in &requests {
        let begin = rest
            .find(&format!("debugfs: {request}\n"))
            .unwrap_or_else(|| panic!("no {request}"));
        rest = &rest[begin + 9 + request.len()..];
        let answer = rest.split("debugfs: ").next().unwrap_or_default();
        for part in says {
            assert!(answer.contains(part), "{request}: no {part:.200}\n{answer:.2000}");
        }
    }
}
