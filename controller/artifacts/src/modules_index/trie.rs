//! The binary index of kmod (`modules.*.bin`): a trie over keys of ASCII (libkmod/libkmod-index.h,
//! tools/depmod.c of kmod).
//!
//! Numbers are 32 bits, the highest byte first. The file: magic, version, where the root is. A node: its
//! prefix (with NUL); the first and the last character of its children and where each of them is, 0 for
//! none; the number of its values, and of each its priority and its text (with NUL). What a node has of
//! these is said by the highest bits of the number that points to it. Children come before their parents.

use std::collections::BTreeMap;

const MAGIC: u32 = 0xB007_F457;
const VERSION: u32 = 0x0002_0001;
const PREFIX: u32 = 0x8000_0000;
const VALUES: u32 = 0x4000_0000;
const CHILDREN: u32 = 0x2000_0000;

/// Keys with their values; each value has a priority, and a lower one is taken first.
#[derive(Debug, Default)]
pub struct Index {
    entries: BTreeMap<Vec<u8>, Vec<(u32, String)>>,
}

impl Index {
    /// Adds a value. A key that is not of ASCII cannot stand in an index and is left out.
    pub fn insert(&mut self, key: &str, value: &str, priority: u32) {
        if key.is_ascii() && !key.is_empty() {
            let values = self.entries.entry(key.as_bytes().to_vec()).or_default();
            let at = values.partition_point(|(other, _)| *other < priority);
            values.insert(at, (priority, value.to_owned()));
        }
    }

    /// The file.
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [MAGIC, VERSION, 0] {
            out.extend(number.to_be_bytes());
        }
        let all: Vec<_> = self.entries.iter().map(|(key, values)| (&key[..], values)).collect();
        let root = write_node(&mut out, &all, 0);
        out[8..12].copy_from_slice(&root.to_be_bytes());
        out
    }
}

/// A key and its values.
type Entry<'a> = (&'a [u8], &'a Vec<(u32, String)>);

/// Writes the node of all `entries`, whose keys are sorted and equal up to `from`; where it is, and what it has.
fn write_node(out: &mut Vec<u8>, entries: &[Entry<'_>], from: usize) -> u32 {
    let Some(((first, _), (last, _))) = entries.first().zip(entries.last()) else {
        return out.len() as u32;
    };
    // Sorted: what the first and the last have in common they all have. depmod gives the root no prefix.
    let pairs = first[from..].iter().zip(&last[from..]);
    let common = if from == 0 {
        0
    } else {
        pairs.take_while(|(a, b)| a == b).count()
    };
    let end = from + common;
    let (own, below) = match entries {
        [(key, values), below @ ..] if key.len() == end => (Some(*values), below),
        all => (None, all),
    };
    let mut children = Vec::new();
    let mut rest = below;
    while let Some((key, _)) = rest.first() {
        let character = key[end];
        let count = rest.partition_point(|(other, _)| other[end] == character);
        let (group, others) = rest.split_at(count);
        children.push((character, write_node(out, group, end + 1)));
        rest = others;
    }
    let mut place = out.len() as u32;
    if common > 0 {
        out.extend(&first[from..end]);
        out.push(0);
        place |= PREFIX;
    }
    if let (Some((low, _)), Some((high, _))) = (children.first(), children.last()) {
        out.extend([*low, *high]);
        for character in *low..=*high {
            let child = children.iter().find(|(c, _)| *c == character);
            out.extend(child.map_or(0, |(_, at)| *at).to_be_bytes());
        }
        place |= CHILDREN;
    }
    if let Some(values) = own {
        out.extend((values.len() as u32).to_be_bytes());
        for (priority, text) in values {
            out.extend(priority.to_be_bytes());
            out.extend(text.bytes());
            out.push(0);
        }
        place |= VALUES;
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks a key up as libkmod does.
    fn find(file: &[u8], key: &str) -> Vec<String> {
        let word = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().expect("four bytes"));
        let text = |at: usize| {
            let end = at + file[at..].iter().position(|b| *b == 0).expect("a NUL");
            (String::from_utf8(file[at..end].to_vec()).expect("text"), end + 1)
        };
        let mut node = word(8);
        let mut left = key.as_bytes();
        loop {
            let mut at = (node & 0x0fff_ffff) as usize;
            if node & PREFIX != 0 {
                let (prefix, next) = text(at);
                let Some(rest) = left.strip_prefix(prefix.as_bytes()) else {
                    return Vec::new();
                };
                (left, at) = (rest, next);
            }
            let mut child = 0;
            if node & CHILDREN != 0 {
                let (low, high) = (file[at], file[at + 1]);
                if let Some(c) = left.first().filter(|c| (low..=high).contains(c)) {
                    child = word(at + 2 + usize::from(c - low) * 4);
                }
                at += 2 + (usize::from(high - low) + 1) * 4;
            }
            if left.is_empty() {
                if node & VALUES == 0 {
                    return Vec::new();
                }
                let count = word(at);
                at += 4;
                return (0..count)
                    .map(|_| {
                        let (value, next) = text(at + 4);
                        at = next;
                        value
                    })
                    .collect();
            }
            if child == 0 {
                return Vec::new();
            }
            (node, left) = (child, &left[1..]);
        }
    }

    #[test]
    fn every_key_is_found_and_no_other() {
        let keys = ["a", "ab", "abc", "abd", "b", "pci:v1*", "pci:v2*", "pci:", "zzz"];
        let mut index = Index::default();
        for (priority, key) in keys.iter().enumerate() {
            index.insert(key, &format!("{key}!"), priority as u32);
        }
        let file = index.write();
        for key in keys {
            assert_eq!(find(&file, key), [format!("{key}!")], "{key}");
        }
        for key in ["", "abx", "abcd", "p", "pci", "pci:v", "zz", "~"] {
            assert_eq!(find(&file, key), Vec::<String>::new(), "{key}");
        }
    }

    #[test]
    fn values_of_one_key_stand_by_priority() {
        let mut index = Index::default();
        for (value, priority) in [("late", 9), ("early", 1), ("late too", 9)] {
            index.insert("key", value, priority);
        }
        let file = index.write();
        assert_eq!(find(&file, "key")[0], "early");
        assert_eq!(find(&file, "key").len(), 3);
    }

    #[test]
    fn an_empty_index_has_a_root_with_nothing() {
        let mut index = Index::default();
        index.insert("é", "no ASCII", 0);
        let file = index.write();
        assert_eq!(file.len(), 12);
        assert_eq!(find(&file, "a"), Vec::<String>::new());
    }
}
