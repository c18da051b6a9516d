//! One 512-byte tar header block: v7, ustar, GNU and star.

use super::{LayerError, show};

/// Size of tar's blocks.
pub const BLOCK: usize = 512;

/// (offset, length) pairs of an old GNU sparse table, as they stand there.
pub type SparsePairs = Vec<(i128, i128)>;

/// A header block whose checksum holds.
pub struct Header<'a>(&'a [u8; BLOCK]);

#[derive(PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Gnu,
}

impl<'a> Header<'a> {
    /// Checks a block's checksum (both the unsigned and the historic signed sum are accepted).
    ///
    /// # Errors
    /// A checksum that does not hold: the stream is damaged or is no tar.
    pub fn parse(block: &'a [u8; BLOCK]) -> Result<Header<'a>, LayerError> {
        let mut unsigned = 0i64;
        let mut signed = 0i64;
        for (at, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        let header = Header(block);
        match number(&block[148..156]) {
            Some(sum) if sum == i128::from(unsigned) || sum == i128::from(signed) => Ok(header),
            _ => Err(LayerError::malformed(
                "a tar header has a wrong checksum: the layer is damaged, or is no tar",
            )),
        }
    }

    /// A block whose checksum is known to hold.
    pub(super) fn checked(block: &'a [u8; BLOCK]) -> Header<'a> {
        Header(block)
    }

    fn format(&self) -> Format {
        match &self.0[257..265] {
            b"ustar  \0" => Format::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Format::Ustar,
            _ => Format::V7,
        }
    }

    /// The type flag.
    pub fn flag(&self) -> u8 {
        self.0[156]
    }

    /// The name, with ustar's prefix.
    pub fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match self.format() {
            Format::V7 => &[],
            // star keeps two time stamps at the end of the prefix field.
            Format::Ustar if &self.0[508..512] == b"tar\0" => text(&self.0[345..476]),
            Format::Ustar => text(&self.0[345..500]),
            Format::Gnu => self.prefix_of_old_go(),
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    /// GNU has two time stamps where ustar has its prefix. Go before 1.8 wrote a prefix there all the same; as its successors
    /// do, what is no time stamp and is ASCII is taken for one (<https://golang.org/issues/12594>).
    fn prefix_of_old_go(&self) -> &[u8] {
        let times = [&self.0[345..357], &self.0[357..369]];
        let is_time = |field: &&[u8]| field[0] == 0 || number(field).is_some();
        let prefix = text(&self.0[345..500]);
        match times.iter().all(is_time) || !prefix.is_ascii() {
            true => &[],
            false => prefix,
        }
    }

    /// The link target.
    pub fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    /// Permission bits.
    pub fn mode(&self) -> Result<i128, LayerError> {
        self.field("mode", 100..108)
    }

    /// Owner.
    pub fn uid(&self) -> Result<i128, LayerError> {
        self.field("uid", 108..116)
    }

    /// Group.
    pub fn gid(&self) -> Result<i128, LayerError> {
        self.field("gid", 116..124)
    }

    /// Bytes of content that follow.
    pub fn size(&self) -> Result<i128, LayerError> {
        self.field("size", 124..136)
    }

    /// Modification time, whole seconds.
    pub fn mtime(&self) -> Result<i128, LayerError> {
        self.field("mtime", 136..148)
    }

    /// Device numbers.
    pub fn device(&self) -> Result<(i128, i128), LayerError> {
        Ok((
            self.field("major device number", 329..337)?,
            self.field("minor device number", 337..345)?,
        ))
    }

    /// Old GNU sparse: the four (offset, length) pairs, whether more blocks follow, the real size.
    pub fn sparse(&self) -> Result<(SparsePairs, bool, i128), LayerError> {
        let pairs = sparse_pairs(&self.0[386..482])?;
        Ok((pairs, self.0[482] != 0, self.field("real size", 483..495)?))
    }

    fn field(&self, what: &str, range: std::ops::Range<usize>) -> Result<i128, LayerError> {
        number(&self.0[range]).ok_or_else(|| {
            LayerError::malformed(format!(
                "the tar header of {} has a bad {what}",
                show(text(&self.0[..100]))
            ))
        })
    }
}

/// The pairs of an old GNU sparse table; an entry with an empty first byte ends it.
pub fn sparse_pairs(table: &[u8]) -> Result<SparsePairs, LayerError> {
    table
        .chunks_exact(24)
        .take_while(|pair| pair[0] != 0)
        .map(|pair| number(&pair[..12]).zip(number(&pair[12..])))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| LayerError::malformed("an old GNU sparse table has a bad number in it"))
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// A numeric field: octal digits with spaces and NULs around them, of which an empty one has only these (0), or base 256
/// (two's complement) when the first bit is set. As Go's archive/tar has it.
fn number(field: &[u8]) -> Option<i128> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // The marker bit goes away; the next bit is the sign.
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, &byte) in field.iter().enumerate() {
            let byte = match (at, negative) {
                (0, true) => byte | 0x80,
                (0, false) => byte & 0x7f,
                _ => byte,
            };
            value = (value << 8) | i128::from(byte);
        }
        return Some(value);
    }
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(begin) = field.iter().position(|byte| !padding(byte)) else {
        return Some(0);
    };
    let end = field.iter().rposition(|byte| !padding(byte))?;
    text(&field[begin..=end])
        .iter()
        .try_fold(0i128, |value, digit| match digit {
            b'0'..=b'7' => Some(value * 8 + i128::from(digit - b'0')),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"        "), Some(0));
        // Fields are filled up on either side.
        assert_eq!(number(b"\x00000644\0"), Some(0o644));
        assert_eq!(number(b"\0\0 644\0 "), Some(0o644));
        assert_eq!(number(b" \0\0 \0  7"), Some(7));
        assert_eq!(number(b"644\0 junk"), Some(0o644));
        for bad in [
            &b"64 4\0\0\0\0"[..],
            b"644 \0 x",
            b"\0\0x644\0",
            b"0x644\0\0\0",
            b"\t644\0\0\0\0",
            b"+644\0\0\0\0",
        ] {
            assert_eq!(number(bad), None, "{}", bad.escape_ascii());
        }
        assert_eq!(number(b"00000089"), None);
        assert_eq!(number(b"-0000001"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), Some(0xffff_ffff));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        let mut old = [0xff; 12];
        old[11] = 0x00;
        assert_eq!(number(&old), Some(-256));
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let mut header = tar::Header::new_ustar();
        header.set_path("a").expect("short");
        header.set_size(0);
        header.set_cksum();
        let mut block = *header.as_bytes();
        assert!(Header::parse(&block).is_ok());
        block[0] ^= 1;
        assert!(Header::parse(&block).is_err());
    }
}
