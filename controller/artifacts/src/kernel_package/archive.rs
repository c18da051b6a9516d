//! Debian packages: an `ar` archive with a tar of the files in it (deb(5)).

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::bad;
use super::collect::{Collector, Kernel};

const AR_MAGIC: &[u8; 8] = b"!<arch>\n";
/// A package has three members; a few more are allowed by deb(5).
const MAX_MEMBERS: usize = 16;

/// Reads the kernel in a package.
pub fn read_deb(path: &Path, spool: &Path) -> io::Result<Kernel> {
    read_members(path, spool).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => bad("it ends too early to be a Debian package: was its download cut off?"),
        _ => error,
    })
}

fn read_members(path: &Path, spool: &Path) -> io::Result<Kernel> {
    let mut file = BufReader::new(File::open(path)?);
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    if &magic != AR_MAGIC {
        return Err(bad("not a Debian package (no ar archive)"));
    }
    for _ in 0..MAX_MEMBERS {
        let mut header = [0; 60];
        match file.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            other => other?,
        }
        let (name, size) = member(&header)?;
        let data = (&mut file).take(size);
        // A dictionary of the packer's choice must not take all memory: 256 MiB is far above any in use.
        match name.as_str() {
            "data.tar.xz" => {
                let reader = lzma_rust2::XzReader::new_mem_limit(data, true, 256 << 10);
                return read_tar(reader, spool);
            }
            "data.tar.zst" => return read_tar(zstd::stream::read::Decoder::new(data)?, spool),
            "data.tar.gz" => return read_tar(flate2::read::MultiGzDecoder::new(data), spool),
            "data.tar" => return read_tar(data, spool),
            _ if name.starts_with("data.tar") => {
                return Err(bad(format!("{name}: compression not supported (xz, zst and gz are)")));
            }
            _ => {
                let padded = i64::try_from(size + size % 2).map_err(|_| bad("ar size"))?;
                file.seek(SeekFrom::Current(padded))?;
            }
        }
    }
    Err(bad("not a Debian package (no data.tar in it)"))
}

/// Name and size of an ar member.
fn member(header: &[u8; 60]) -> io::Result<(String, u64)> {
    let text = |range| {
        std::str::from_utf8(&header[range])
            .map(str::trim_end)
            .map_err(|_| bad("ar header is not text"))
    };
    if &header[58..] != b"`\n" {
        return Err(bad("ar header is damaged"));
    }
    let size = text(48..58)?;
    let size = size.parse().map_err(|_| bad(format!("ar size {size:?}")))?;
    Ok((text(0..16)?.trim_end_matches('/').to_owned(), size))
}

fn read_tar(reader: impl Read, spool: &Path) -> io::Result<Kernel> {
    let mut collector = Collector::new(spool)?;
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path_bytes();
        let Ok(path) = std::str::from_utf8(&path) else {
            continue; // No kernel names a file so.
        };
        let path = path.strip_prefix("./").unwrap_or(path).to_owned();
        collector.file(&path, &mut entry)?;
    }
    collector.finish()
}
