//! Root disks: qcow2 overlays of which only the header is written here.
//!
//! Format: docs/interop/qcow2.txt of QEMU. Version 3, 64 KiB clusters, raw backing file. Four clusters:
//! header, refcount table, one refcount block, L1 table. The L1 table fills its cluster whatever the
//! size of the disk, so that growing up to 4 TiB changes 8 bytes of the header and moves nothing.
//! A header extension of our own names the base's identity: the file itself says what it stands on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const CLUSTER: u64 = 65536;
const CLUSTER_BITS: u32 = 16;
/// Bytes that one L1 entry covers: a cluster of L2 entries, each for one cluster.
const PER_L1_ENTRY: u64 = CLUSTER / 8 * CLUSTER;
const L1_IN_CLUSTER: u64 = CLUSTER / 8;
const MAGIC: u32 = 0x5146_49fb;
const HEADER_LENGTH: u32 = 104;
const SIZE_AT: u64 = 24;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// `VMLB`: unknown extensions are kept by QEMU and ignored by others.
const EXTENSION_BASE_ID: u32 = 0x564d_4c42;
/// The format's own limit for the backing file's name.
const MAX_BACKING: usize = 1023;
/// The largest disk, in bytes: 64 TiB keep the L1 table within 1 MiB.
pub const MAX_SIZE: u64 = 64 << 40;

/// What an overlay says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Virtual size in bytes.
    pub size: u64,
    /// Identity of the base.
    pub base_id: String,
    /// Where the base was when the overlay was made.
    pub base: String,
    /// The largest virtual size that the L1 table has room for.
    pub max_size: u64,
}

/// Why an overlay cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is not an overlay that was made here.
    #[error("it is not an overlay made by vmlet ({0})")]
    NotOurs(&'static str),
    /// The size cannot be had.
    #[error("a size of {0} bytes is not possible (a multiple of 512, at most 64 TiB)")]
    BadSize(u64),
    /// The name of the base does not fit the format.
    #[error("the path of its base is longer than {MAX_BACKING} bytes")]
    BackingTooLong,
}

/// Writes the header of an empty overlay into an empty file. Nothing is synced.
///
/// # Errors
/// [`Qcow2Error`].
pub fn create(file: &File, overlay_size: u64, base: &str, base_id: &str) -> Result<(), Qcow2Error> {
    if overlay_size == 0 || !overlay_size.is_multiple_of(512) || overlay_size > MAX_SIZE {
        return Err(Qcow2Error::BadSize(overlay_size));
    }
    if base.len() > MAX_BACKING || base_id.len() > MAX_BACKING {
        return Err(Qcow2Error::BackingTooLong);
    }
    let l1_entries = overlay_size.div_ceil(PER_L1_ENTRY).max(L1_IN_CLUSTER);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);

    let mut header = Vec::with_capacity(512);
    let mut tail = Vec::with_capacity(256);
    extension(&mut tail, EXTENSION_BACKING_FORMAT, b"raw");
    extension(&mut tail, EXTENSION_BASE_ID, base_id.as_bytes());
    extension(&mut tail, 0, b"");
    let backing_at = u64::from(HEADER_LENGTH) + tail.len() as u64;

    header.extend(MAGIC.to_be_bytes());
    header.extend(3u32.to_be_bytes());
    header.extend(backing_at.to_be_bytes());
    header.extend((base.len() as u32).to_be_bytes());
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(overlay_size.to_be_bytes());
    header.extend(0u32.to_be_bytes()); // no encryption
    header.extend((l1_entries as u32).to_be_bytes());
    header.extend((3 * CLUSTER).to_be_bytes()); // L1 table
    header.extend(CLUSTER.to_be_bytes()); // refcount table
    header.extend(1u32.to_be_bytes()); // of one cluster
    header.extend(0u32.to_be_bytes()); // snapshots
    header.extend(0u64.to_be_bytes());
    header.extend([0u8; 24]); // no incompatible, compatible or autoclear features
    header.extend(4u32.to_be_bytes()); // 16-bit refcounts
    header.extend(HEADER_LENGTH.to_be_bytes());
    header.extend(tail);
    header.extend(base.as_bytes());

    let used = 3 + l1_clusters;
    let refcounts: Vec<u8> = (0..used).flat_map(|_| 1u16.to_be_bytes()).collect();
    file.write_all_at(&header, 0)?;
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    file.write_all_at(&refcounts, 2 * CLUSTER)?;
    file.set_len(used * CLUSTER)?;
    Ok(())
}

/// Reads what an overlay says about itself.
///
/// # Errors
/// [`Qcow2Error::NotOurs`] for everything that [`create`] did not write, [`Qcow2Error::Io`].
pub fn read(file: &File) -> Result<Overlay, Qcow2Error> {
    let mut bytes = [0u8; 4096];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    let bytes = &bytes[..filled];
    let not_ours = Qcow2Error::NotOurs;
    if u32_at(bytes, 0) != Some(MAGIC) || u32_at(bytes, 4) != Some(3) {
        return Err(not_ours("no qcow2 version 3"));
    }
    if u32_at(bytes, 20) != Some(CLUSTER_BITS) {
        return Err(not_ours("another cluster size"));
    }
    let cut = not_ours("the header is cut off");
    let (Some(size), Some(l1), Some(backing_at), Some(backing_len), Some(length)) = (
        u64_at(bytes, SIZE_AT as usize),
        u32_at(bytes, 36),
        u64_at(bytes, 8),
        u32_at(bytes, 16),
        u32_at(bytes, 100),
    ) else {
        return Err(cut);
    };
    let base_id =
        find_extension(bytes, length as usize, EXTENSION_BASE_ID).ok_or(not_ours("it names no base identity"))?;
    let base = usize::try_from(backing_at)
        .ok()
        .and_then(|from| bytes.get(from..from.checked_add(backing_len as usize)?))
        .ok_or(cut)?;
    Ok(Overlay {
        size,
        base_id: String::from_utf8_lossy(base_id).into_owned(),
        base: String::from_utf8_lossy(base).into_owned(),
        max_size: (u64::from(l1) * PER_L1_ENTRY).min(MAX_SIZE),
    })
}

/// Gives an overlay that no VMM has open a greater virtual size, and syncs it.
///
/// # Errors
/// [`Qcow2Error::BadSize`] if the L1 table has no room for it, [`Qcow2Error::Io`].
pub fn grow(file: &File, overlay: &Overlay, size: u64) -> Result<(), Qcow2Error> {
    if size < overlay.size || !size.is_multiple_of(512) || size > overlay.max_size {
        return Err(Qcow2Error::BadSize(size));
    }
    // Eight bytes within one sector: whole or not at all.
    file.write_all_at(&size.to_be_bytes(), SIZE_AT)?;
    file.sync_all()?;
    Ok(())
}

fn extension(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

fn find_extension(bytes: &[u8], mut at: usize, wanted: u32) -> Option<&[u8]> {
    loop {
        let kind = u32_at(bytes, at)?;
        let length = u32_at(bytes, at.checked_add(4)?)? as usize;
        let data = bytes.get(at + 8..(at + 8).checked_add(length)?)?;
        match kind {
            0 => return None,
            kind if kind == wanted => return Some(data),
            _ => at = (at + 8).checked_add(length)?.checked_next_multiple_of(8)?,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    fn overlay_in(dir: &Path, size: u64) -> File {
        let base = dir.join("base");
        File::create(&base).expect("base").set_len(1 << 20).expect("sized");
        let path = dir.join("root.qcow2");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .expect("overlay");
        create(&file, size, &base.to_string_lossy(), "sha256:abc").expect("created");
        file
    }

    /// What qemu-img says, or None with a word where it is not installed.
    fn qemu_img(args: &[&str], file: &Path) -> Option<serde_json::Value> {
        let Ok(output) = Command::new("qemu-img")
            .args(args)
            .arg("--output=json")
            .arg(file)
            .output()
        else {
            println!("skipped: qemu-img is not installed");
            return None;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(serde_json::from_slice(&output.stdout).expect("json"))
    }

    #[test]
    fn an_overlay_says_what_it_stands_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = overlay_in(dir.path(), 10 << 30);
        let overlay = read(&file).expect("reads");
        assert_eq!((overlay.size, overlay.base_id.as_str()), (10 << 30, "sha256:abc"));
        assert!(overlay.base.ends_with("/base"));
        assert_eq!(overlay.max_size, 4 << 40);
    }

    #[test]
    fn qemu_img_finds_new_and_grown_overlays_clean() {
        for (size, grown) in [(1u64 << 20, 1u64 << 40), (10 << 30, 4 << 40), (20 << 40, 20 << 40)] {
            let dir = tempfile::tempdir().expect("a directory");
            let file = overlay_in(dir.path(), size);
            grow(&file, &read(&file).expect("reads"), grown).expect("grows");
            let path = dir.path().join("root.qcow2");
            let Some(check) = qemu_img(&["check"], &path) else {
                return;
            };
            assert_eq!(check["check-errors"], 0, "{check}");
            assert_eq!(check.get("leaks"), None, "{check}");
            let info = qemu_img(&["info"], &path).expect("installed");
            assert_eq!(info["virtual-size"], grown);
            assert_eq!(info["backing-filename-format"], "raw");
        }
    }

    #[test]
    fn a_new_overlay_takes_no_space_worth_naming() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("a directory");
        let file = overlay_in(dir.path(), 1 << 40);
        let meta = file.metadata().expect("metadata");
        assert!(meta.len() == 4 * CLUSTER && meta.blocks() * 512 <= 64 << 10, "{meta:?}");
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = overlay_in(dir.path(), 1 << 30);
        let overlay = read(&file).expect("reads");
        for size in [0, 1 << 29, (1 << 30) + 1, u64::MAX, 5 << 40] {
            assert!(
                matches!(grow(&file, &overlay, size), Err(Qcow2Error::BadSize(_))),
                "{size}"
            );
        }
        let other = tempfile::tempfile().expect("a file");
        for size in [0, 513, MAX_SIZE + 512] {
            assert!(matches!(create(&other, size, "b", "i"), Err(Qcow2Error::BadSize(_))));
        }
        let long = "x".repeat(MAX_BACKING + 1);
        assert!(matches!(
            create(&other, 512, &long, "i"),
            Err(Qcow2Error::BackingTooLong)
        ));
    }

    #[test]
    fn a_foreign_or_cut_file_is_refused_at_every_length() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = overlay_in(dir.path(), 1 << 30);
        let mut whole = vec![0u8; 400];
        file.read_exact_at(&mut whole, 0).expect("reads");
        let end = whole.iter().rposition(|b| *b != 0).expect("bytes") + 1;
        for length in 0..end {
            let cut = tempfile::tempfile().expect("a file");
            cut.write_all_at(&whole[..length], 0).expect("writes");
            assert!(matches!(read(&cut), Err(Qcow2Error::NotOurs(_))), "{length}");
        }
        let mut wild = whole.clone();
        for at in 0..end {
            wild[at] ^= 0xff;
            let file = tempfile::tempfile().expect("a file");
            file.write_all_at(&wild, 0).expect("writes");
            let _ = read(&file); // an error or an answer, never a panic
            wild[at] ^= 0xff;
        }
    }
}
