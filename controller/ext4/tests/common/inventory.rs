//! What a tree holds, in words: one line for each name. The model, the reader of these tests and the guest all say it
//! the same way, so that two lists can be compared line by line. Nothing but the standard library: the guest has no more.

use std::collections::BTreeMap;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// Seconds and nanoseconds.
pub type Time = (i64, u32);

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As `ls` has it: `-dlcbps`.
    pub kind: char,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u64,
    /// Bytes; 0 for directories, whose size is the file system's own affair.
    pub size: u64,
    pub device: (u32, u32),
    /// Access, content change, inode change, birth.
    pub times: [Time; 4],
    /// A number that all names of one inode share.
    pub inode: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The blocks that are not all zeroes.
    pub content: Content,
    pub target: Vec<u8>,
}

/// A file's content: how many blocks are not a hole, and a sum over their places and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    pub blocks: u64,
    sum: u64,
}

impl Default for Content {
    fn default() -> Content {
        Content {
            blocks: 0,
            sum: 0xcbf2_9ce4_8422_2325,
        }
    }
}

impl Content {
    /// Takes a block in, in ascending order; a shorter last one counts as filled with zeroes.
    pub fn block(&mut self, index: u64, bytes: &[u8]) {
        assert!(bytes.len() <= BLOCK);
        self.blocks += 1;
        let zeroes = std::iter::repeat_n(&0, BLOCK - bytes.len());
        for byte in index.to_le_bytes().iter().chain(bytes).chain(zeroes) {
            // FNV-1a.
            self.sum = (self.sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// A tree as lines, in the order of the paths. Names of one inode are named after the first of them.
pub fn lines(tree: &BTreeMap<Vec<u8>, Entry>) -> Vec<String> {
    let mut first: BTreeMap<u64, &[u8]> = BTreeMap::new();
    for (path, entry) in tree {
        first.entry(entry.inode).or_insert(path);
    }
    tree.iter()
        .map(|(path, entry)| line(path, entry, first[&entry.inode]))
        .collect()
}

fn line(path: &[u8], entry: &Entry, first: &[u8]) -> String {
    let mut text = format!(
        "{} {}{:04o} {}:{} links={} size={}",
        path.escape_ascii(),
        entry.kind,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.links,
        entry.size
    );
    for (what, (seconds, nanoseconds)) in ["a", "m", "c", "b"].iter().zip(entry.times) {
        text += &format!(" {what}={seconds}.{nanoseconds:09}");
    }
    match entry.kind {
        '-' => text += &format!(" blocks={} sum={:016x}", entry.content.blocks, entry.content.sum),
        'l' => text += &format!(" -> {}", entry.target.escape_ascii()),
        'b' | 'c' => text += &format!(" device={}:{}", entry.device.0, entry.device.1),
        _ => {}
    }
    if first != path {
        text += &format!(" same={}", first.escape_ascii());
    }
    for (name, value) in &entry.xattrs {
        text += &format!(" {}={}", name.escape_ascii(), value_text(name, value));
    }
    text
}

fn value_text(name: &[u8], value: &[u8]) -> String {
    if name.starts_with(b"system.posix_acl_") {
        return acl_text(value);
    }
    if value.len() <= 100 {
        return value.iter().map(|byte| format!("{byte:02x}")).collect();
    }
    let mut sum = Content::default();
    for (index, part) in value.chunks(BLOCK).enumerate() {
        sum.block(index as u64, part);
    }
    format!("({} bytes, sum {:016x})", value.len(), sum.sum)
}

/// An access list as `getfacl --numeric --omit-header` prints it, with commas for the line ends.
pub fn acl_text(value: &[u8]) -> String {
    let Some(entries) = value.strip_prefix(&2u32.to_le_bytes()) else {
        return format!("unreadable {value:?}");
    };
    let entry = |bytes: &[u8]| {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let id = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let who = match half(0) {
            0x01 => "user:".to_owned(),
            0x02 => format!("user:{id}"),
            0x04 => "group:".to_owned(),
            0x08 => format!("group:{id}"),
            0x10 => "mask:".to_owned(),
            0x20 => "other:".to_owned(),
            tag => format!("unknown {tag}"),
        };
        let may = |bit: u16, letter: char| if half(2) & bit != 0 { letter } else { '-' };
        format!("{who}:{}{}{}", may(4, 'r'), may(2, 'w'), may(1, 'x'))
    };
    entries.chunks_exact(8).map(entry).collect::<Vec<_>>().join(",")
}
