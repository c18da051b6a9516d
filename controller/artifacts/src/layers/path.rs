//! Names in layers: normalising, whiteouts.
//!
//! Names are bytes. They are looked up in the merged tree only, never on the host.

use super::{LayerError, show};

/// The longest component that ext4 can hold.
const NAME_MAX: usize = 255;

/// What a marker's name has before the name that it hides.
const MARKER: &[u8] = b".wh.";

/// What a member's name asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Named {
    /// An entry at this normalised path (no leading, double or trailing slash; empty: the root).
    Entry(Vec<u8>),
    /// `.wh.NAME`: hide the lower layers' entry at this path.
    Whiteout(Vec<u8>),
    /// `.wh..wh..opq`: hide everything that lower layers have in this directory.
    Opaque(Vec<u8>),
    /// Book-keeping of old aufs layers (`.wh..wh.plnk` and the like): no entry.
    Ignored,
}

/// Normalises a path from an archive: absolute names, `.` components and extra slashes are the same
/// entry as the plain relative name.
///
/// # Errors
/// `..` anywhere, NUL, a component of more than 255 bytes (of a marker: behind `.wh.`), more than `limit` bytes.
pub fn normalise(raw: &[u8], limit: usize) -> Result<Vec<u8>, LayerError> {
    if raw.len() > limit {
        return Err(LayerError::TooLarge(format!(
            "the path {} has {} bytes, more than {limit}",
            show(raw),
            raw.len()
        )));
    }
    let mut path = Vec::with_capacity(raw.len());
    for component in raw.split(|&b| b == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => {
                return Err(LayerError::malformed(format!(
                    "the path {} has a `..` in it",
                    show(raw)
                )));
            }
            _ => {}
        }
        if component.contains(&0) {
            return Err(LayerError::malformed(format!(
                "the path {} has a NUL byte in it",
                show(raw)
            )));
        }
        let name = component.strip_prefix(MARKER).unwrap_or(component);
        if name.len() > NAME_MAX {
            return Err(LayerError::malformed(format!(
                "the name {} has {} bytes; a file system holds {NAME_MAX}",
                show(name),
                name.len()
            )));
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
    }
    Ok(path)
}

/// Splits a normalised path into parent and last component; `None` for the root.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    })
}

/// Tells entries from whiteouts (OCI image specification, layer.md, "Whiteouts").
///
/// # Errors
/// Names that start with `.wh.` but hide nothing that can exist: `.wh.`, `.wh..`, `.wh...`, and a
/// marker that is used as a directory.
pub fn classify(path: Vec<u8>) -> Result<Named, LayerError> {
    let Some((parent, name)) = split(&path) else {
        return Ok(Named::Entry(path));
    };
    for component in parent.split(|&b| b == b'/') {
        if component.starts_with(b".wh..wh.") {
            return Ok(Named::Ignored);
        }
        if component.starts_with(MARKER) {
            return Err(LayerError::malformed(format!(
                "{} lies below a whiteout marker",
                show(&path)
            )));
        }
    }
    let Some(hidden) = name.strip_prefix(MARKER) else {
        return Ok(Named::Entry(path));
    };
    if name == b".wh..wh..opq" {
        return Ok(Named::Opaque(parent.to_vec()));
    }
    if hidden.starts_with(MARKER) {
        return Ok(Named::Ignored);
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(LayerError::malformed(format!(
            "the whiteout {} names no entry",
            show(&path)
        )));
    }
    let mut target = parent.to_vec();
    if !target.is_empty() {
        target.push(b'/');
    }
    target.extend_from_slice(hidden);
    Ok(Named::Whiteout(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(raw: &[u8]) -> Vec<u8> {
        normalise(raw, 4096).expect("a good path")
    }

    #[test]
    fn spellings_of_one_path_are_one_path() {
        for raw in [&b"a/b"[..], b"/a/b", b"./a/b", b"a//b", b"a/b/", b"././/a/./b/."] {
            assert_eq!(plain(raw), b"a/b", "{}", raw.escape_ascii());
        }
        assert_eq!(plain(b"/"), b"");
        assert_eq!(plain(b"./"), b"");
        assert_eq!(plain(b"\xff\xfe/\x01"), b"\xff\xfe/\x01");
    }

    #[test]
    fn dot_dot_is_refused_even_where_it_stays_inside() {
        for raw in [&b".."[..], b"../x", b"a/../b", b"a/..", b"/.."] {
            assert!(
                matches!(normalise(raw, 4096), Err(LayerError::Malformed(_))),
                "{}",
                raw.escape_ascii()
            );
        }
        assert_eq!(plain(b"..a/b.."), b"..a/b..");
    }

    #[test]
    fn components_end_at_255_bytes_and_paths_at_the_limit() {
        assert!(normalise(&[b'x'; 255], 4096).is_ok());
        assert!(matches!(normalise(&[b'x'; 256], 4096), Err(LayerError::Malformed(_))));
        assert!(matches!(
            normalise(&b"x/".repeat(3000), 4096),
            Err(LayerError::TooLarge(_))
        ));
        assert!(normalise(b"a\0b", 4096).is_err());
    }

    #[test]
    fn whiteouts_are_told_from_entries() {
        assert_eq!(
            classify(b"a/.wh.b".to_vec()).ok(),
            Some(Named::Whiteout(b"a/b".to_vec()))
        );
        assert_eq!(classify(b".wh.b".to_vec()).ok(), Some(Named::Whiteout(b"b".to_vec())));
        assert_eq!(
            classify(b"a/.wh..wh..opq".to_vec()).ok(),
            Some(Named::Opaque(b"a".to_vec()))
        );
        assert_eq!(classify(b".wh..wh..opq".to_vec()).ok(), Some(Named::Opaque(Vec::new())));
        assert_eq!(classify(b".wh..wh.plnk/1.2".to_vec()).ok(), Some(Named::Ignored));
        assert_eq!(classify(b".wh..wh.aufs".to_vec()).ok(), Some(Named::Ignored));
        assert_eq!(
            classify(b"a/.wha".to_vec()).ok(),
            Some(Named::Entry(b"a/.wha".to_vec()))
        );
    }

    #[test]
    fn whiteouts_of_nothing_are_refused() {
        for name in [&b".wh."[..], b".wh..", b".wh...", b"d/.wh.", b"d/.wh...", b".wh.d/x"] {
            assert!(classify(name.to_vec()).is_err(), "{}", name.escape_ascii());
        }
    }
}
