//! POSIX ACLs: from the form that getxattr and tar use to the one that lies on the disk.
//!
//! Both are a version and a list of entries in little-endian words. The portable form has version 2 and an id in every
//! entry; ext4's own has version 1 and an id only where it means something. A kernel cannot read the one as the other,
//! and e2fsck does not look.

const PORTABLE_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Converts an ACL. `None` is an empty ACL, which is the same as having none.
pub(crate) fn to_disk(portable: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    let Some(entries) = parse(portable)? else {
        return Ok(None);
    };
    let mut disk = DISK_VERSION.to_le_bytes().to_vec();
    for entry in entries {
        disk.extend_from_slice(&entry.tag.to_le_bytes());
        disk.extend_from_slice(&entry.permissions.to_le_bytes());
        if entry.has_id() {
            disk.extend_from_slice(&entry.id.to_le_bytes());
        }
    }
    Ok(Some(disk))
}

/// What Linux makes of an inode's mode when it is given an access ACL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AclMode {
    /// The nine permission bits: those of the owner, of the mask (of the group without one), and of all others.
    pub permissions: u16,
    /// The ACL says nothing more than they do. Linux keeps none then.
    pub is_all: bool,
}

/// What Linux makes of the mode of an inode that is given this access ACL, in the form that getxattr has it. `None` if it is
/// empty or not valid.
pub fn acl_mode(portable: &[u8]) -> Option<AclMode> {
    let entries = parse(portable).ok()??;
    let of = |tag| {
        entries
            .iter()
            .find(|entry| entry.tag == tag)
            .map(|entry| entry.permissions)
    };
    let group = of(MASK).or(of(GROUP_OBJ))?;
    Some(AclMode {
        permissions: of(USER_OBJ)? << 6 | group << 3 | of(OTHER)?,
        is_all: entries.len() == 3,
    })
}

/// The entries in the order of Linux, once they are seen to be valid; `None` if there are none.
fn parse(portable: &[u8]) -> Result<Option<Vec<Entry>>, &'static str> {
    let Some((version, entries)) = portable.split_first_chunk::<4>() else {
        return Err("it is shorter than its header");
    };
    if u32::from_le_bytes(*version) != PORTABLE_VERSION {
        return Err("its version is not 2");
    }
    let (entries, rest) = entries.as_chunks::<8>();
    if !rest.is_empty() {
        return Err("its length is not a header and whole entries of 8 bytes");
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let mut entries: Vec<Entry> = entries.iter().map(Entry::parse).collect();
    // Linux evaluates entries in this order, and every reader expects it.
    entries.sort_by_key(|entry| (entry.tag, entry.has_id().then_some(entry.id)));
    check(&entries)?;
    Ok(Some(entries))
}

struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

impl Entry {
    fn parse(bytes: &[u8; 8]) -> Entry {
        let [a, b, c, d, e, f, g, h] = *bytes;
        Entry {
            tag: u16::from_le_bytes([a, b]),
            permissions: u16::from_le_bytes([c, d]),
            id: u32::from_le_bytes([e, f, g, h]),
        }
    }

    fn has_id(&self) -> bool {
        self.tag == USER || self.tag == GROUP
    }
}

/// The rules of acl_valid(3): each of the three classes once, a mask once where there are named entries, no id twice.
fn check(entries: &[Entry]) -> Result<(), &'static str> {
    const KNOWN: [u16; 6] = [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER];
    if entries.iter().any(|e| !KNOWN.contains(&e.tag)) {
        return Err("an entry has an unknown tag");
    }
    if entries.iter().any(|e| e.permissions > 7) {
        return Err("an entry has permissions other than read, write and execute");
    }
    let count = |tag| entries.iter().filter(|e| e.tag == tag).count();
    if [USER_OBJ, GROUP_OBJ, OTHER].into_iter().any(|tag| count(tag) != 1) {
        return Err("it needs exactly one entry each for owner, group and others");
    }
    let named = count(USER) + count(GROUP) > 0;
    if count(MASK) > 1 || (named && count(MASK) == 0) {
        return Err("it needs one mask when it names users or groups, and at most one otherwise");
    }
    let twice = |pair: &[Entry]| pair[0].has_id() && pair[0].tag == pair[1].tag && pair[0].id == pair[1].id;
    if entries.windows(2).any(twice) {
        return Err("it names a user or group twice");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portable(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn only_named_entries_keep_their_ids_and_the_order_is_linux_own() {
        let acl = portable(&[
            (OTHER, 4, u32::MAX),
            (MASK, 7, u32::MAX),
            (GROUP, 5, 70_000),
            (GROUP_OBJ, 5, u32::MAX),
            (USER, 6, 1000),
            (USER_OBJ, 7, u32::MAX),
        ]);
        let expected = [
            &[1, 0, 0, 0][..],
            &[1, 0, 7, 0],
            &[2, 0, 6, 0, 0xe8, 3, 0, 0],
            &[4, 0, 5, 0],
            &[8, 0, 5, 0, 0x70, 0x11, 1, 0],
            &[0x10, 0, 7, 0],
            &[0x20, 0, 4, 0],
        ]
        .concat();
        assert_eq!(to_disk(&acl), Ok(Some(expected)));
    }

    #[test]
    fn an_empty_acl_is_none() {
        assert_eq!(to_disk(&portable(&[])), Ok(None));
        assert_eq!(acl_mode(&portable(&[])), None);
    }

    #[test]
    fn the_mode_is_what_the_acl_says_of_owner_mask_or_group_and_others() {
        let mode = |permissions, is_all| Some(AclMode { permissions, is_all });
        let three = [(OTHER, 1, 0), (GROUP_OBJ, 4, 0), (USER_OBJ, 6, 0)];
        assert_eq!(acl_mode(&portable(&three)), mode(0o641, true));
        let masked = portable(&[&three[..], &[(MASK, 7, 0)]].concat());
        assert_eq!(acl_mode(&masked), mode(0o671, false));
        let named = portable(&[&three[..], &[(MASK, 2, 0), (USER, 7, 1000), (GROUP, 7, 5)]].concat());
        assert_eq!(acl_mode(&named), mode(0o621, false));
        assert_eq!(acl_mode(&portable(&three[..2])), None);
    }

    #[test]
    fn what_linux_would_refuse_is_refused() {
        let base = [(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 0, 0)];
        let with = |more: &[(u16, u16, u32)]| portable(&[&base[..], more].concat());
        assert!(to_disk(&with(&[])).is_ok());
        for bad in [
            vec![],
            vec![2, 0, 0],
            vec![1, 0, 0, 0],
            [portable(&base), vec![0]].concat(),
            portable(&base[..2]),
            with(&[(USER_OBJ, 7, 0)]),
            with(&[(USER, 7, 5)]),
            with(&[(MASK, 7, 0), (MASK, 7, 0)]),
            with(&[(MASK, 7, 0), (USER, 7, 5), (USER, 6, 5)]),
            with(&[(MASK, 8, 0)]),
            with(&[(0x40, 7, 0)]),
        ] {
            assert!(to_disk(&bad).is_err(), "{bad:?}");
        }
    }
}
