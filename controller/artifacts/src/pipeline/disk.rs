//! What all disks that are made here have in common: size, identity, and a hash of their content.

use sha2::{Digest as _, Sha256};
use vmlet_ext4::{Checksums, FreeSpace, Options, Size};

/// A base disk's size: room for the content to be lived in; overlays grow further in the guest.
pub fn base_size() -> Size {
    Size::Auto {
        free: FreeSpace {
            percent: 25,
            bytes: 256 << 20,
        },
    }
}

/// Options for a disk; its UUID comes from `identity`, so that equal images give equal bytes.
pub fn options(identity: &str, size: Size) -> Options {
    let seed = Sha256::digest(format!("vmlet: {identity}").as_bytes());
    let (mut uuid, mut hash_seed) = ([0u8; 16], [0u8; 16]);
    uuid.copy_from_slice(&seed[..16]);
    hash_seed.copy_from_slice(&seed[16..]);
    // Version 8 (free form), RFC 9562.
    (uuid[6], uuid[8]) = (uuid[6] & 0x0f | 0x80, uuid[8] & 0x3f | 0x80);
    Options::new(uuid, hash_seed, size)
}

/// Hash of a disk's content, made of the checksums that were taken while it was written: SHA-256 over number and CRC32c of
/// every 4 KiB block that is not all zeros, and the size. The same for equal bytes, however sparsely a file system keeps
/// them. It finds damage; against somebody who means harm the checksums say nothing.
pub fn content_hash(checksums: &Checksums, size: u64) -> String {
    let mut hasher = Sha256::new();
    for (block, sum) in checksums.iter() {
        hasher.update(u64::from(block).to_le_bytes());
        hasher.update(sum.to_le_bytes());
    }
    hasher.update(size.to_le_bytes());
    let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("crc32c-sha256:{hex}")
}

/// Whether a block of at most 4096 bytes is all zeros.
pub fn is_zero(block: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    ZEROS.starts_with(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use vmlet_ext4::{Attributes, Timestamp, Tree, Writer};

    #[test]
    fn the_hash_taken_while_a_disk_is_written_is_that_of_its_file_and_tells_a_changed_bit() {
        let file = tempfile::tempfile().expect("a temporary file");
        let writing = file.try_clone().expect("the same file");
        let mut writer = Writer::create(writing, options("x", base_size())).expect("an image");
        let mut content = writer.begin_file().expect("a content");
        content.write(&[7; 100_000]).expect("it fits");
        let content = content.finish().expect("it fits");
        let mut tree = Tree::new(Attributes::new(0o755, 0, 0, Timestamp::default()));
        let inode = vmlet_ext4::Inode {
            kind: vmlet_ext4::Kind::File(content),
            attributes: Attributes::new(0o644, 0, 0, Timestamp::default()),
            xattrs: Vec::new(),
        };
        let node = tree.add(inode).expect("a file");
        tree.link(tree.root(), b"file", node).expect("a name");
        let summary = writer.finish(tree).expect("an image");
        let now = || content_hash(&Checksums::of_file(&file).expect("it is read"), summary.size);
        let meant = content_hash(&summary.checksums, summary.size);
        assert_eq!(now(), meant);
        assert_ne!(content_hash(&summary.checksums, summary.size + 4096), meant);
        let mut byte = [0];
        for at in [1024, summary.size - 1] {
            file.read_exact_at(&mut byte, at).expect("it is read");
            file.write_all_at(&[byte[0] ^ 1], at).expect("it is written");
            assert_ne!(now(), meant, "{at}");
            file.write_all_at(&byte, at).expect("it is written");
        }
        assert_eq!(now(), meant);
    }
}
