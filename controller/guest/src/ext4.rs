//! What the guest reads from an ext4 superblock to decide whether and how to grow it.

/// Where the superblock is, in bytes from the start of the device.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// How much of it is needed, in bytes.
pub const SUPERBLOCK_SIZE: usize = 1024;

const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_64BIT: u32 = 0x80;

/// The part of a superblock that matters for growing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Size of the file system, in its blocks.
    pub blocks: u64,
    /// Bytes per block.
    pub block_size: u64,
    /// The journal has something to replay.
    pub needs_recovery: bool,
}

impl Superblock {
    /// Reads it. None: not an ext4 superblock.
    pub fn parse(bytes: &[u8]) -> Option<Superblock> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let magic = u16::from_le_bytes(bytes.get(0x38..0x3a)?.try_into().ok()?);
        let shift = word(0x18)?;
        if magic != 0xEF53 || shift > 6 {
            return None;
        }
        let incompatible = word(0x60)?;
        let high = if incompatible & INCOMPAT_64BIT != 0 {
            u64::from(word(0x150)?)
        } else {
            0
        };
        Some(Superblock {
            blocks: high << 32 | u64::from(word(0x4)?),
            block_size: 1024 << shift,
            needs_recovery: incompatible & INCOMPAT_RECOVER != 0,
        })
    }

    /// The size to grow to, in blocks, on a device of so many bytes. None: it is there already.
    pub fn grown(&self, device_bytes: u64) -> Option<u64> {
        let blocks = device_bytes / self.block_size;
        (blocks > self.blocks).then_some(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(blocks: u64, incompatible: u32) -> Vec<u8> {
        let mut bytes = vec![0u8; SUPERBLOCK_SIZE];
        bytes[0x4..0x8].copy_from_slice(&(blocks as u32).to_le_bytes());
        bytes[0x18] = 2;
        bytes[0x38..0x3a].copy_from_slice(&0xEF53u16.to_le_bytes());
        bytes[0x60..0x64].copy_from_slice(&incompatible.to_le_bytes());
        bytes[0x150..0x154].copy_from_slice(&((blocks >> 32) as u32).to_le_bytes());
        bytes
    }

    #[test]
    fn a_superblock_says_its_size_and_whether_its_journal_is_dirty() {
        let read = Superblock::parse(&superblock(5 << 32 | 7, INCOMPAT_64BIT | INCOMPAT_RECOVER)).expect("ext4");
        assert_eq!(
            read,
            Superblock {
                blocks: 5 << 32 | 7,
                block_size: 4096,
                needs_recovery: true
            }
        );
        let small = Superblock::parse(&superblock(5 << 32 | 7, 0)).expect("ext4");
        assert_eq!(
            small,
            Superblock {
                blocks: 7,
                block_size: 4096,
                needs_recovery: false
            }
        );
    }

    #[test]
    fn what_is_no_ext4_is_said() {
        assert_eq!(Superblock::parse(&[]), None);
        assert_eq!(Superblock::parse(&[0; 1024]), None);
        let mut odd = superblock(7, 0);
        odd[0x18] = 40;
        assert_eq!(Superblock::parse(&odd), None);
        assert_eq!(
            Superblock::parse(&superblock(7, 0)[..0x70]),
            Some(Superblock {
                blocks: 7,
                block_size: 4096,
                needs_recovery: false
            })
        );
    }

    #[test]
    fn only_a_larger_device_grows_it() {
        let fs = Superblock {
            blocks: 10,
            block_size: 4096,
            needs_recovery: false,
        };
        assert_eq!(
            [fs.grown(4096 * 10 + 4095), fs.grown(4096 * 9), fs.grown(4096 * 11)],
            [None, None, Some(11)]
        );
    }
}
