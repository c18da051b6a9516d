//! A bare ext4 file system as a disk: checked, then taken as it is.
//!
//! Offsets and flags: Linux, `Documentation/filesystems/ext4/super.rst`.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use vmlet_ext4::Checksums;

use super::content::CopyError;
use super::disk::is_zero;

const AT: usize = 1024;
const SIZE: usize = 1024;
const MAGIC: u16 = 0xef53;
const BLOCK: usize = 4096;

/// Incompatible features that Linux mounts: filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg,
/// ea_inode, metadata_csum_seed, large_dir, inline_data, encrypt, casefold.
const INCOMPATIBLE: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
/// Features with which Linux mounts it writable: sparse_super, large_file, huge_file, uninit_bg, dir_nlink,
/// extra_isize, quota, bigalloc, metadata_csum, project, verity, orphan_present.
const READ_ONLY_COMPATIBLE: u32 =
    0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x8000 | 0x1_0000;
const METADATA_CSUM: u32 = 0x400;
const READONLY: u32 = 0x1000;
const JOURNAL_DEV: u32 = 0x8;
const ERRORS: u16 = 2;

/// Whether there is a superblock of the ext family in the first bytes of a disk.
pub fn is_superblock(start: &[u8]) -> bool {
    start.len() >= AT + SIZE && u16_at(start, AT + 0x38) == MAGIC
}

/// Checks the superblock in the first bytes of a disk; answers with the file system's size in bytes.
///
/// # Errors
/// What a guest could not mount writable, as a sentence.
pub fn check(start: &[u8]) -> Result<u64, String> {
    let Some(block) = start.get(AT..AT + SIZE).filter(|_| is_superblock(start)) else {
        return Err("it has no superblock".into());
    };
    let (incompatible, read_only) = (u32_at(block, 0x60), u32_at(block, 0x64));
    if u32_at(block, 0x4c) == 0 {
        return Err("it is an ext2 of revision 0; make it anew with a current mke2fs".into());
    }
    if incompatible & JOURNAL_DEV != 0 {
        return Err("it is the journal of another disk".into());
    }
    let unknown = incompatible & !INCOMPATIBLE;
    if unknown != 0 {
        return Err(format!(
            "it has features that Linux does not mount (incompatible, {unknown:#x})"
        ));
    }
    if read_only & READONLY != 0 {
        return Err("it is marked read-only (tune2fs -O ^read-only)".into());
    }
    let unknown = read_only & !READ_ONLY_COMPATIBLE;
    if unknown != 0 {
        return Err(format!(
            "it has features with which Linux mounts it read-only ({unknown:#x})"
        ));
    }
    if read_only & METADATA_CSUM != 0 {
        let sum = !crc32c::crc32c_append(0, &block[..SIZE - 4]);
        if sum != u32_at(block, SIZE - 4) {
            return Err("its superblock has a wrong checksum".into());
        }
    }
    if u16_at(block, 0x3a) & ERRORS != 0 {
        return Err("it has errors; run e2fsck".into());
    }
    let log = u32_at(block, 0x18);
    if log > 2 {
        return Err(format!(
            "its blocks have 2^{} bytes; Linux on x86 mounts up to 4096",
            log.saturating_add(10)
        ));
    }
    let high = if incompatible & 0x80 != 0 {
        u32_at(block, 0x150)
    } else {
        0
    };
    let blocks = u64::from(high) << 32 | u64::from(u32_at(block, 0x04));
    let size = blocks.checked_mul(1024 << log).filter(|&size| size > 0);
    size.ok_or_else(|| "it has an impossible size".into())
}

/// Copies a disk; runs of zeros become holes. Answers with its length, a multiple of 4096 bytes, and what was written.
///
/// # Errors
/// Of either side.
pub fn copy(from: &mut dyn Read, to: &File) -> Result<(u64, Checksums), CopyError> {
    let mut checksums = Checksums::default();
    let mut buffer = vec![0; 256 * BLOCK];
    let mut at = 0u64;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match from.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CopyError::Read(error)),
            }
        }
        if filled == 0 {
            break;
        }
        let whole = filled.next_multiple_of(BLOCK);
        buffer[filled..whole].fill(0);
        let mut rest = &buffer[..whole];
        let mut place = at;
        while !rest.is_empty() {
            let data: usize = rest
                .chunks(BLOCK)
                .take_while(|block| !is_zero(block))
                .map(<[u8]>::len)
                .sum();
            to.write_all_at(&rest[..data], place).map_err(CopyError::Write)?;
            checksums.note(block(place)?, &rest[..data]);
            let hole: usize = rest[data..]
                .chunks(BLOCK)
                .take_while(|block| is_zero(block))
                .map(<[u8]>::len)
                .sum();
            rest = &rest[data + hole..];
            place += (data + hole) as u64;
        }
        at += whole as u64;
    }
    to.set_len(at).map_err(CopyError::Write)?;
    Ok((at, checksums))
}

/// The number of the block at an offset.
fn block(at: u64) -> Result<u32, CopyError> {
    u32::try_from(at / BLOCK as u64).map_err(|_| CopyError::Write(io::ErrorKind::FileTooLarge.into()))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_of_a_copied_disk_is_what_its_file_holds() {
        let mut disk = vec![0; 3_000_000];
        disk[5000] = 1;
        disk[1_500_000..].fill(2);
        let file = tempfile::tempfile().expect("a temporary file");
        let Ok((length, checksums)) = copy(&mut disk.as_slice(), &file) else {
            panic!("it is copied");
        };
        assert_eq!(length, 3_002_368);
        assert!(checksums == Checksums::of_file(&file).expect("it is read"));
        disk.resize(3_002_368, 0);
        let mut copied = vec![1; disk.len()];
        file.read_exact_at(&mut copied, 0).expect("it is read");
        assert!(copied == disk);
    }
}
