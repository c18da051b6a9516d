//! What the fuzz targets do with bytes. Whatever these are: an answer or an error, never a panic, and never more than the
//! bounds allow.

use std::fs::File;
use std::io::Cursor;

use vmlet_artifacts::layers::LayerError;
use vmlet_artifacts::layers::apply::{Content, Input, Store, flatten};
use vmlet_artifacts::layers::disk::DiskStore;
use vmlet_artifacts::layers::member::Segment;
use vmlet_artifacts::types::Limits;
use vmlet_ext4::{FreeSpace, Options, Size, Writer};

use super::raw::{Member, member, seal, tar as tar_of};

/// Bounds small enough for a fuzzer's memory.
fn limits() -> Limits {
    Limits {
        entries: 1000,
        uncompressed_bytes: 4 << 20,
        zstd_window_bytes: 1 << 20,
        ..Limits::default()
    }
}

/// A store that reads everything and keeps lengths.
struct Lengths;

impl Store for Lengths {
    type Data = u64;

    fn store(&mut self, content: &mut dyn Content) -> Result<u64, LayerError> {
        let mut buffer = [0; 512];
        let mut length = 0u64;
        while let Some(segment) = content.next(&mut buffer)? {
            length = length.saturating_add(match segment {
                Segment::Data(bytes) => bytes.len() as u64,
                Segment::Hole(length) => length,
            });
        }
        Ok(length)
    }

    fn discard(&mut self, _: u64) -> Result<(), LayerError> {
        Ok(())
    }
}

/// One layer of any bytes, also compressed ones. What looks like a header gets a right checksum: no fuzzer finds that.
pub fn tar(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    for block in bytes.as_chunks_mut::<512>().0 {
        if &block[257..262] == b"ustar" {
            seal(block);
        }
    }
    let layer = Input {
        bytes: Box::new(Cursor::new(bytes)),
        diff_id: None,
    };
    let _ = flatten(vec![layer], &mut Lengths, &limits(), &Default::default(), &|| ());
}

/// Layers made of well-formed members, written as a disk. What is accepted is accepted again, with the same bytes.
pub fn layers(bytes: &[u8]) {
    let mut rest = bytes;
    let mut layers = vec![Vec::new()];
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first == 0xff {
            layers.push(Vec::new());
        } else if let Some(layer) = layers.last_mut() {
            layer.push(any_member(*first, &mut rest));
        }
    }
    let layers: Vec<Vec<u8>> = layers.iter().map(|members| tar_of(members)).collect();
    let (once, again) = (disk(&layers), disk(&layers));
    assert!(once == again, "the same layers gave another disk");
}

/// A member from a few bytes: names are short and made of few letters, so that they meet.
fn any_member(first: u8, rest: &mut &[u8]) -> Member {
    let flags = [b'0', b'0', b'5', b'5', b'1', b'2', b'3', b'6'];
    let flag = flags[usize::from(first) % flags.len()];
    let mut made = member(flag, "");
    made.name = path(rest);
    made.mode = u32::from(next(rest)) << 4;
    match flag {
        b'0' => made.content = vec![next(rest); usize::from(next(rest)) * 40],
        b'1' | b'2' => made.link = path(rest),
        b'3' => made.device = (next(rest).into(), next(rest).into()),
        _ => {}
    }
    if first & 0x40 != 0 {
        let value = vec![next(rest); usize::from(next(rest)) * 30];
        made = made.pax("SCHILY.xattr.user.x", &value);
    }
    made
}

fn path(rest: &mut &[u8]) -> Vec<u8> {
    let parts = [
        "a",
        "b",
        "c",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
        "..",
        ".",
        "",
        "\u{ff}",
        "lost+found",
        "c",
    ];
    let count = usize::from(next(rest)) % 5;
    let names: Vec<&str> = (0..count)
        .map(|_| parts[usize::from(next(rest)) % parts.len()])
        .collect();
    names.join("/").into_bytes()
}

fn next(rest: &mut &[u8]) -> u8 {
    match rest.split_first() {
        Some((first, more)) => {
            *rest = more;
            *first
        }
        None => 0,
    }
}

/// The non-zero bytes of the disk, or the words of the refusal.
fn disk(layers: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let file = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).map_err(|error| error.to_string())?;
    let file = File::from(file);
    let reading = file.try_clone().map_err(|error| error.to_string())?;
    let size = Size::Auto {
        free: FreeSpace::default(),
    };
    let mut options = Options::new([1; 16], [2; 16], size);
    options.max_size = 1 << 30;
    let writer = Writer::create(file, options).map_err(|error| error.to_string())?;
    let mut store = DiskStore::new(writer);
    let input = |bytes: &Vec<u8>| Input {
        bytes: Box::new(Cursor::new(bytes.clone())),
        diff_id: None,
    };
    let inputs = layers.iter().map(input).collect();
    let tree = flatten(inputs, &mut store, &limits(), &Default::default(), &|| ())
        .map_err(|(at, error)| format!("{at}: {error}"))?;
    store
        .finish(tree, &Default::default())
        .map_err(|error| error.to_string())?;
    Ok(data(&reading))
}

/// What a sparse file holds, without its holes.
fn data(file: &File) -> Vec<u8> {
    use rustix::fs::{SeekFrom, seek};
    use std::os::unix::fs::FileExt;
    let (mut found, mut at) = (Vec::new(), 0);
    while let Ok(start) = seek(file, SeekFrom::Data(at)) {
        let end = seek(file, SeekFrom::Hole(start)).unwrap_or(start + 1);
        let mut part = vec![0; (end - start) as usize];
        if file.read_exact_at(&mut part, start).is_ok() {
            found.extend_from_slice(&start.to_le_bytes());
            found.extend(part);
        }
        at = end;
    }
    found
}
