//! Writes a directory of this machine as an ext4 image: `cargo run --example directory -- DIRECTORY IMAGE`.
//!
//! Everything stays on one file system's terms: names are bytes, hard links stay links, holes in files become holes. Extended
//! attributes are left out to keep it short.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use vmlet_ext4::{Attributes, FileData, FreeSpace, Inode, Kind, Options, Size, Timestamp, Tree, Writer};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [directory, image] = &arguments[..] else {
        return Err("usage: directory DIRECTORY IMAGE".into());
    };
    let size = Size::Auto {
        free: FreeSpace {
            percent: 10,
            bytes: 64 << 20,
        },
    };
    // A real program takes random identities; these make the same image from the same directory.
    let mut writer = Writer::create(File::create(image)?, Options::new([1; 16], [2; 16], size))?;
    let mut tree = Tree::new(attributes(&fs::symlink_metadata(directory)?));
    let mut known = HashMap::new();
    // A list instead of recursion: no depth is too deep.
    let mut todo = vec![(directory.clone(), tree.root())];
    while let Some((path, parent)) = todo.pop() {
        let mut entries = fs::read_dir(&path)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name());
            let meta = fs::symlink_metadata(&path)?;
            if let Some(node) = known.get(&(meta.dev(), meta.ino())) {
                tree.link(parent, name.as_bytes(), *node)?;
                continue;
            }
            let Some(kind) = kind(&path, &meta, &mut writer)? else {
                continue;
            };
            let directory = kind == Kind::Directory;
            let node = tree.add(Inode {
                kind,
                attributes: attributes(&meta),
                xattrs: Vec::new(),
            })?;
            tree.link(parent, name.as_bytes(), node)?;
            if directory {
                todo.push((path, node));
            } else if meta.nlink() > 1 {
                known.insert((meta.dev(), meta.ino()), node);
            }
        }
    }
    let summary = writer.finish(tree)?;
    println!(
        "{} inodes, {} bytes used of {}",
        summary.inodes, summary.used, summary.size
    );
    Ok(())
}

fn kind(path: &Path, meta: &Metadata, writer: &mut Writer) -> Result<Option<Kind>, Box<dyn Error>> {
    let kind = meta.file_type();
    let number = meta.rdev();
    let (major, minor) = (
        (number >> 8 & 0xfff) as u32,
        (number & 0xff | number >> 12 & 0xf_ff00) as u32,
    );
    Ok(Some(match () {
        () if kind.is_dir() => Kind::Directory,
        () if kind.is_file() => Kind::File(content(path, writer)?),
        () if kind.is_symlink() => Kind::Symlink(fs::read_link(path)?.as_os_str().as_bytes().to_vec()),
        () if kind.is_fifo() => Kind::Fifo,
        () if kind.is_socket() => Kind::Socket,
        () if kind.is_char_device() => Kind::CharDevice { major, minor },
        () if kind.is_block_device() => Kind::BlockDevice { major, minor },
        () => return Ok(None),
    }))
}

fn content(path: &Path, writer: &mut Writer) -> Result<FileData, Box<dyn Error>> {
    let mut source = File::open(path)?;
    let mut data = writer.begin_file()?;
    let mut buffer = vec![0; 128 << 10];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(data.finish()?),
            length => data.write(&buffer[..length])?,
        }
    }
}

fn attributes(meta: &Metadata) -> Attributes {
    let time = |sec, nsec: i64| Timestamp { sec, nsec: nsec as u32 };
    let mtime = time(meta.mtime(), meta.mtime_nsec());
    Attributes {
        atime: time(meta.atime(), meta.atime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        ..Attributes::new((meta.mode() & 0o7777) as u16, meta.uid(), meta.gid(), mtime)
    }
}
