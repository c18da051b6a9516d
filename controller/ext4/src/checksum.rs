//! CRC32c as ext4 uses it: without the final inversion, so that one checksum can be the seed of the next.

/// Checksum of `data`, continuing from `seed`.
pub(crate) fn crc(seed: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, data)
}

/// Seed of every metadata checksum of a file system with this UUID.
pub(crate) fn file_system_seed(uuid: &[u8; 16]) -> u32 {
    crc(!0, uuid)
}

/// Seed of the checksums of everything that belongs to one inode (its generation is always 0).
pub(crate) fn inode_seed(file_system: u32, inode: u32) -> u32 {
    crc(crc(file_system, &inode.to_le_bytes()), &[0; 4])
}
