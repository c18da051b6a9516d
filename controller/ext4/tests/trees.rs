//! Any tree: what a reader finds on the disk is what was given, and e2fsck has nothing to say.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use common::inventory::lines;
use common::model::{Model, any_model};
use common::reader::Image;
use common::*;
use proptest::prelude::*;
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
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_is_clean_and_reads_back_as_it_was_given(model in any_model(60), fixed in any::<bool>()) {
        let size = if fixed { Size::Fixed(300 * MIB) } else { Size::Auto { free: FreeSpace { percent: 10, bytes: MIB } } };
        let file = write(&model, size);
        let (found, expected) = (lines(&Image::open(file.path()).tree()), lines(&model.expected()));
        prop_assert_eq!(found, expected);
        let again = write(&model, size);
        prop_assert!(blocks(&file) == blocks(&again), "the same calls gave other bytes");
    }
}
