//! Decompression by what the bytes are, not by what a media type says they are.
//!
//! gzip: any number of members; zero bytes after the last one are ignored, other bytes are
//! refused. zstd: any number of frames, skippable ones among them, up to a window size. Anything
//! else is taken for a plain tar, except the well-known compressions that are named in the refusal.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::GzDecoder;

const BUFFER: usize = 128 << 10;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// zstd (RFC 8878).
    Zstd,
}

/// Finds the compression from the first bytes of a stream.
///
/// # Errors
/// `Unsupported` with the name of a known compression that is not one of OCI's.
pub fn detect(start: &[u8]) -> io::Result<Compression> {
    let refuse = |name: &str| {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("it is compressed with {name}; OCI layers are plain, gzip or zstd"),
        ))
    };
    match start {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => refuse("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => refuse("xz"),
        [0x04, 0x22, 0x4d, 0x18, ..] => refuse("lz4"),
        _ => Ok(Compression::None),
    }
}

/// The decompressed bytes of `source`. A zstd window above `zstd_window_bytes` is refused.
///
/// # Errors
/// Those of `source`, and of [`detect`].
pub fn decoder<'a>(mut source: impl Read + Send + 'a, zstd_window_bytes: u64) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut start = Vec::with_capacity(8);
    source.by_ref().take(8).read_to_end(&mut start)?;
    let compression = detect(&start)?;
    let whole = Cursor::new(start).chain(source);
    Ok(match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(Gzip::new(whole)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(BUFFER, whole))?;
            let log = zstd_window_bytes.max(1024).ilog2();
            decoder.window_log_max(log)?;
            Box::new(Zstd { decoder, log })
        }
    })
}

/// All frames of a zstd stream.
struct Zstd<D> {
    decoder: D,
    /// The base-2 logarithm of the largest window that is allowed, in bytes.
    log: u32,
}

impl<D: Read> Read for Zstd<D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buf).map_err(|error| match error.to_string() {
            // The library has no other name for it (ZSTD_error_frameParameter_windowTooLarge).
            text if text.contains("requires too much memory") => {
                let (log, size) = (self.log, 1_u64 << self.log);
                let why = format!(
                    "it needs a zstd window of more than {size} bytes; compress it with a smaller one (zstd --long={log})"
                );
                io::Error::new(io::ErrorKind::FileTooLarge, why)
            }
            _ => error,
        })
    }
}

type Source<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// All members of a gzip stream.
enum Gzip<R: Read> {
    Member(Box<GzDecoder<Source<R>>>),
    Ended,
}

impl<R: Read> Gzip<R> {
    fn new(source: Chain<Cursor<Vec<u8>>, R>) -> Self {
        Gzip::Member(Box::new(GzDecoder::new(BufReader::with_capacity(BUFFER, source))))
    }
}

impl<R: Read> Read for Gzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let Gzip::Member(member) = self else { return Ok(0) };
            let n = member.read(buf)?;
            if n > 0 {
                return Ok(n);
            }
            // The member is complete, checksum included: another one, zeros, or the end.
            let Gzip::Member(member) = std::mem::replace(self, Gzip::Ended) else {
                return Ok(0);
            };
            let mut source = member.into_inner();
            match source.fill_buf()?.first() {
                None => return Ok(0),
                Some(0x1f) => *self = Gzip::Member(Box::new(GzDecoder::new(source))),
                Some(_) => expect_zeros(&mut source)?,
            }
        }
    }
}

fn expect_zeros(source: &mut impl BufRead) -> io::Result<()> {
    loop {
        let rest = source.fill_buf()?;
        if rest.is_empty() {
            return Ok(());
        }
        if rest.iter().any(|&b| b != 0) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "there is garbage after the end of the gzip stream",
            ));
        }
        let n = rest.len();
        source.consume(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).expect("to memory");
        encoder.finish().expect("to memory")
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 1).expect("to memory")
    }

    fn decode(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decoder(data, 128 << 20)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn gzip_of_many_members_is_one_stream() {
        let data = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
        assert_eq!(decode(&data).expect("good gzip"), b"one two");
    }

    #[test]
    fn zeros_after_gzip_are_ignored_and_garbage_is_refused() {
        assert_eq!(decode(&[gzip(b"x"), vec![0; 1000]].concat()).expect("good gzip"), b"x");
        assert!(decode(&[gzip(b"x"), b"\0\0garbage".to_vec()].concat()).is_err());
        assert!(decode(&[gzip(b"x"), b"garbage".to_vec()].concat()).is_err());
    }

    #[test]
    fn damaged_or_cut_gzip_is_refused() {
        let mut bad = gzip(b"some content");
        let crc = bad.len() - 8;
        bad[crc] ^= 1;
        assert!(decode(&bad).is_err());
        let good = gzip(&b"some content".repeat(1000));
        for cut in [good.len() - 1, good.len() - 8, good.len() / 2, 12] {
            assert!(decode(&good[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn zstd_of_many_frames_and_skippable_ones_is_one_stream() {
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let data = [
            skippable.clone(),
            zstd(b"one "),
            skippable.clone(),
            zstd(b"two"),
            skippable,
        ]
        .concat();
        assert_eq!(decode(&data).expect("good zstd"), b"one two");
    }

    #[test]
    fn cut_zstd_and_a_too_large_window_are_refused() {
        let good = zstd(&b"some content".repeat(1000));
        assert!(decode(&good[..good.len() - 2]).is_err());
        // A frame header that asks for a 2 GiB window: descriptor 0, window exponent 21.
        let huge = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0];
        assert!(decode(&huge).is_err());
    }

    #[test]
    fn plain_bytes_pass_and_foreign_compressions_are_named() {
        assert_eq!(decode(b"plain").expect("plain"), b"plain");
        assert_eq!(decode(b"").expect("nothing"), b"");
        let error = decode(b"\xfd7zXZ\0rest").expect_err("xz").to_string();
        assert!(error.contains("xz"), "{error}");
    }
}
