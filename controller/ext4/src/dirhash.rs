//! The hash that orders names in an indexed directory: half MD4 over unsigned bytes, seeded per file system.

/// `s_def_hash_version` and `hash_version` of every index: half MD4. That bytes are unsigned is said by `s_flags`.
pub(crate) const HALF_MD4: u8 = 1;

/// Hash of a name: the index is ordered by `major`, whose lowest bit is free for a mark, then by `minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hash {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// Hash of `name` under the file system's seed; a seed of zeroes means MD4's own initial state.
pub(crate) fn half_md4(name: &[u8], seed: &[u32; 4]) -> Hash {
    let mut state = if *seed == [0; 4] {
        [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476]
    } else {
        *seed
    };
    let mut rest = name;
    while !rest.is_empty() {
        transform(&mut state, &words(rest));
        rest = &rest[rest.len().min(32)..];
    }
    let mut major = state[1] & !1;
    // The largest value means "end of directory" to readers.
    const END: u32 = 0x7fff_ffff << 1;
    if major == END {
        major = END - 2;
    }
    Hash { major, minor: state[2] }
}

/// The next 32 bytes as eight words, filled up with the remaining length in every byte.
fn words(bytes: &[u8]) -> [u32; 8] {
    let length = bytes.len() as u32;
    let fill = (length | length << 8) | (length | length << 8) << 16;
    let mut words = [fill; 8];
    for (word, chunk) in words.iter_mut().zip(bytes[..bytes.len().min(32)].chunks(4)) {
        for byte in chunk {
            *word = (*word << 8).wrapping_add(u32::from(*byte));
        }
    }
    words
}

/// The three rounds of half MD4: which word goes into each of the eight steps, and the rotations.
fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    let choose: Mix = |x, y, z| z ^ (x & (y ^ z));
    let majority: Mix = |x, y, z| (x & y).wrapping_add((x ^ y) & z);
    let parity: Mix = |x, y, z| x ^ y ^ z;
    let rounds: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (choose, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (majority, 0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (parity, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, rotations) in rounds {
        for (step, word) in order.into_iter().enumerate() {
            let sum = a
                .wrapping_add(mix(b, c, d))
                .wrapping_add(input[word])
                .wrapping_add(constant)
                .rotate_left(rotations[step % 4]);
            (a, b, c, d) = (d, sum, b, c);
        }
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_that_debugfs_prints() {
        let seed = [0x0403_0201, 0x0807_0605, 0x0c0b_0a09, 0x100f_0e0d_u32].map(u32::from_le);
        let long = [b'x'; 40];
        let longest: Vec<u8> = b"ab".iter().copied().cycle().take(254).collect();
        for (name, seeded, plain) in [
            (&b"a"[..], (0x8d08_ec4c, 0x2fbc_cd78), (0xd5fa_7d7a, 0xacb4_8187)),
            (b"hello", (0xe2dd_f968, 0xc8bc_0924), (0x1746_da32, 0x4200_13b5)),
            (&long, (0x2161_99f4, 0xb249_bb8b), (0xa583_68b6, 0x7a9f_8ab7)),
            (
                b"abcdefghijklmnopqrstuvwxyz012345",
                (0xda48_2084, 0xdf09_6196),
                (0x1964_3b1a, 0xdde3_a0bf),
            ),
            (&longest, (0x2032_4360, 0x685e_f602), (0x14c2_2844, 0xe3c8_e920)),
        ] {
            let [with_seed, without] = [&seed, &[0; 4]].map(|seed| {
                let hash = half_md4(name, seed);
                (hash.major, hash.minor)
            });
            assert_eq!(with_seed, seeded, "{}", name.escape_ascii());
            assert_eq!(without, plain, "{}", name.escape_ascii());
        }
    }
}
