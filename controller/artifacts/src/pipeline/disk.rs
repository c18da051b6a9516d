//! What all disks that are made here have in common: size, identity, and a hash of their content.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};
use vmlet_ext4::{FreeSpace, Options, Size};

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

/// SHA-256 over (index, content) of every 4 KiB block that is not all zeros, and the size: the
/// same for equal bytes however sparsely a file system keeps them.
pub fn content_hash(file: &File) -> std::io::Result<String> {
    use rustix::fs::{SeekFrom, seek};
    let size = file.metadata()?.len();
    let mut hasher = Sha256::new();
    let mut at = 0;
    let mut buffer = vec![0; 1 << 20];
    while at < size {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data / 4096 * 4096,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = data.max(at);
        let n = At(file, at).take(buffer.len() as u64).read(&mut buffer)?;
        let mut filled = n;
        while filled < buffer.len() && filled % 4096 != 0 {
            match file.read_at(&mut buffer[filled..], at + filled as u64)? {
                0 => break,
                more => filled += more,
            }
        }
        if filled == 0 {
            break;
        }
        for (index, block) in buffer[..filled].chunks(4096).enumerate() {
            if !is_zero(block) {
                hasher.update((at / 4096 + index as u64).to_le_bytes());
                hasher.update(block);
            }
        }
        at += filled as u64;
    }
    hasher.update(size.to_le_bytes());
    let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

/// Whether a block of at most 4096 bytes is all zeros.
pub fn is_zero(block: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    ZEROS.starts_with(block)
}

struct At<'a>(&'a File, u64);

impl Read for At<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_at(buf, self.1)
    }
}
