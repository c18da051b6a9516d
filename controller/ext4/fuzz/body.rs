//! What the fuzz target does with bytes: each is a call of the writer or of the tree, those behind it its arguments.
//! Whatever they are: an image or an error, never a panic. The checksums that come with an image are those of its file.

use std::fs::File;

use vmlet_ext4::{
    Attributes, Checksums, FileData, FreeSpace, Inode, Kind, NodeId, Options, Size, Timestamp, Tree, Writer,
};

/// Makes the calls; the image, if one came of them.
pub fn calls(bytes: &[u8]) -> Option<File> {
    let mut rest = Rest(bytes);
    let file = File::from(rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).ok()?);
    let image = file.try_clone().ok()?;
    let size = match rest.byte() % 4 {
        0 => Size::Fixed(128 << 20),
        1 => Size::Fixed(u64::from(rest.word()) << 12),
        _ => Size::Auto {
            free: FreeSpace {
                percent: rest.byte().into(),
                bytes: u64::from(rest.word()),
            },
        },
    };
    let mut options = Options::new([1; 16], [2; 16], size);
    options.max_size = 1 << 33;
    options.created = rest.time();
    let mut writer = Writer::create(file, options).ok()?;
    let mut tree = Tree::new(rest.attributes());
    let mut nodes = vec![tree.root()];
    let mut contents = Vec::new();
    while !rest.0.is_empty() {
        match rest.byte() % 8 {
            0 | 1 => contents.extend(content(&mut writer, &mut rest)),
            2 => {
                if let Some(data) = contents.pop() {
                    writer.discard(data).ok()?;
                }
            }
            3 => {
                let xattrs = rest.xattrs();
                let _ = tree.set_root_xattrs(&xattrs);
            }
            4 | 5 => {
                let inode = Inode {
                    kind: kind(&mut rest, &mut contents),
                    attributes: rest.attributes(),
                    xattrs: rest.xattrs(),
                };
                if let Ok(node) = tree.add(inode) {
                    let parent = pick(&nodes, &mut rest);
                    let name = rest.bytes();
                    let _ = tree.link(parent, &name, node);
                    nodes.push(node);
                }
            }
            _ => {
                let (parent, node) = (pick(&nodes, &mut rest), pick(&nodes, &mut rest));
                let name = rest.bytes();
                let _ = tree.link(parent, &name, node);
            }
        }
    }
    let summary = writer.finish(tree).ok()?;
    assert!(summary.checksums == Checksums::of_file(&image).ok()?);
    Some(image)
}

fn content(writer: &mut Writer, rest: &mut Rest) -> Option<FileData> {
    let mut file = writer.begin_file().ok()?;
    for _ in 0..rest.byte() % 6 {
        match rest.byte() % 3 {
            0 => file.hole(rest.word().into()).ok()?,
            1 => file.hole(u64::from(rest.word()) << 20).ok()?,
            _ => file.write(&vec![rest.byte(); usize::from(rest.byte()) * 97]).ok()?,
        }
    }
    // Now and then one is given up.
    if rest.byte().is_multiple_of(8) {
        None
    } else {
        file.finish().ok()
    }
}

fn kind(rest: &mut Rest, contents: &mut Vec<FileData>) -> Kind {
    match rest.byte() % 8 {
        0 | 1 => Kind::Directory,
        2 => Kind::Symlink(rest.bytes()),
        3 => Kind::CharDevice {
            major: rest.word() >> 16,
            minor: rest.word() >> 8,
        },
        4 => Kind::BlockDevice {
            major: rest.byte().into(),
            minor: rest.byte().into(),
        },
        5 => Kind::Fifo,
        6 => Kind::Socket,
        _ => Kind::File(contents.pop().unwrap_or_default()),
    }
}

fn pick(nodes: &[NodeId], rest: &mut Rest) -> NodeId {
    nodes[usize::from(rest.byte()) % nodes.len()]
}

/// Arguments; zeroes when they are used up.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte());
        if length > 128 {
            // Long ones of one letter, around the limits of names and targets.
            return vec![self.byte(); length + 33 * usize::from(self.byte() % 128)];
        }
        let (now, later) = self.0.split_at(self.0.len().min(length % 12));
        self.0 = later;
        now.to_vec()
    }

    fn time(&mut self) -> Timestamp {
        Timestamp {
            sec: i64::from(self.word()) << (self.byte() % 34),
            nsec: self.word(),
        }
    }

    fn attributes(&mut self) -> Attributes {
        Attributes::new(self.word() as u16, self.word(), self.word(), self.time())
    }

    fn xattrs(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        const NAMES: [&[u8]; 5] = [
            b"user.",
            b"trusted.",
            b"security.",
            b"system.posix_acl_access",
            b"system.posix_acl_default",
        ];
        let count = self.byte() % 4;
        let xattr = |rest: &mut Rest| {
            let prefix = NAMES[usize::from(rest.byte()) % NAMES.len()];
            let name = match prefix.last() {
                Some(b'.') => [prefix, &rest.bytes()].concat(),
                _ => prefix.to_vec(),
            };
            (name, vec![rest.byte(); usize::from(rest.word() as u16)])
        };
        (0..count).map(|_| xattr(self)).collect()
    }
}
