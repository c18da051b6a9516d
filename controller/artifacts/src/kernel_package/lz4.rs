//! The legacy LZ4 stream that Linux compresses its image with (lz4 `doc/lz4_Frame_format.md`,
//! "Legacy frame"): a magic, then blocks of a length and LZ4 block data.

use std::io;

use super::bad;
use super::image::too_large;

/// First bytes of such a stream.
pub const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// No block of the legacy format expands to more.
const BLOCK: usize = 8 << 20;

/// Expands a whole stream, at most `most` bytes.
pub fn expand(stream: &[u8], most: u64) -> io::Result<Vec<u8>> {
    let mut rest = stream.strip_prefix(&MAGIC).ok_or_else(|| bad("not an LZ4 stream"))?;
    let limit = usize::try_from(most).unwrap_or(usize::MAX);
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest
            .split_first_chunk::<4>()
            .ok_or_else(|| bad("LZ4 block without a length"))?;
        let length = u32::from_le_bytes(*length) as usize;
        let block = after.get(..length).ok_or_else(|| bad("LZ4 block is cut short"))?;
        rest = &after[length..];
        let end = out.len().saturating_add(BLOCK).min(limit);
        let beyond = || match end == limit {
            true => too_large(most),
            false => bad("LZ4 block expands beyond its bound"),
        };
        expand_block(block, &mut out, end, &beyond)?;
    }
    Ok(out)
}

/// Appends one block; a match never reaches before the block's own start.
fn expand_block(mut block: &[u8], out: &mut Vec<u8>, end: usize, beyond: &dyn Fn() -> io::Error) -> io::Result<()> {
    let start = out.len();
    loop {
        let token = take(&mut block, 1)?[0];
        let literals = length(usize::from(token >> 4), &mut block)?;
        let bytes = take(&mut block, literals)?;
        if out.len() + literals > end {
            return Err(beyond());
        }
        out.extend_from_slice(bytes);
        if block.is_empty() {
            return Ok(());
        }
        let offset = take(&mut block, 2)?;
        let offset = usize::from(u16::from_le_bytes([offset[0], offset[1]]));
        let count = length(usize::from(token & 15), &mut block)? + 4;
        if offset == 0 || offset > out.len() - start {
            return Err(bad("LZ4 match points before its block"));
        }
        if out.len() + count > end {
            return Err(beyond());
        }
        let from = out.len() - offset;
        if offset >= count {
            out.extend_from_within(from..from + count);
        } else {
            // Overlapping: each byte may be one that this match wrote.
            for index in from..from + count {
                out.push(out[index]);
            }
        }
    }
}

fn length(nibble: usize, block: &mut &[u8]) -> io::Result<usize> {
    let mut total = nibble;
    if nibble == 15 {
        loop {
            let byte = take(block, 1)?[0];
            total += usize::from(byte);
            if byte != 255 {
                break;
            }
        }
    }
    Ok(total)
}

fn take<'a>(block: &mut &'a [u8], count: usize) -> io::Result<&'a [u8]> {
    let (taken, rest) = block
        .split_at_checked(count)
        .ok_or_else(|| bad("LZ4 block is cut short"))?;
    *block = rest;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(block: &[u8]) -> Vec<u8> {
        [&MAGIC[..], &(block.len() as u32).to_le_bytes(), block].concat()
    }

    #[test]
    fn literals_and_an_overlapping_match_expand() {
        // "ab", then 6 bytes from 2 back, then the literal "c".
        let block = [0x22, b'a', b'b', 2, 0, 0x10, b'c'];
        assert_eq!(expand(&stream(&block), 100).expect("sound"), b"ababababc");
    }

    #[test]
    fn long_lengths_go_over_several_bytes() {
        // One literal, then a match of 4 + 15 + 255 + 1 bytes, then nothing.
        let block = [0x1f, b'x', 1, 0, 255, 1, 0x00];
        assert_eq!(expand(&stream(&block), 1000).expect("sound"), vec![b'x'; 276]);
    }

    #[test]
    fn what_is_damaged_is_an_error() {
        let sound = stream(&[0x22, b'a', b'b', 2, 0, 0x10, b'c']);
        for cut in 1..sound.len() {
            assert!(cut == 4 || expand(&sound[..cut], 100).is_err(), "cut at {cut}");
        }
        assert!(expand(&sound, 8).is_err(), "beyond the limit");
        let before = stream(&[0x22, b'a', b'b', 3, 0, 0x10, b'c']);
        assert!(expand(&before, 100).is_err(), "a match before the block");
    }
}
