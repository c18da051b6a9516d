//! PAX extended headers (POSIX.1-2001 pax) and the extensions that image builders write.

use super::sparse::PaxSparse;
use super::{LayerError, show};

/// Far more than any file system keeps for one inode; the search for a name among them is linear.
const MOST_XATTRS: usize = 1024;

/// What a PAX header overrides for the member that follows it.
#[derive(Debug, Default)]
pub struct Pax {
    /// The path.
    pub path: Option<Vec<u8>>,
    /// What a link names.
    pub link: Option<Vec<u8>>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Owner.
    pub uid: Option<u64>,
    /// Group.
    pub gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// In the order of their first appearance; the last value of a name wins.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// How a sparse file is laid out.
    pub sparse: PaxSparse,
}

impl Pax {
    /// Adds the records of one PAX header's content.
    ///
    /// # Errors
    /// Records that break the format. Unknown keywords are ignored, as POSIX wants it.
    pub fn read(&mut self, mut content: &[u8]) -> Result<(), LayerError> {
        while !content.is_empty() {
            let (record, rest) = split_record(content)?;
            content = rest;
            let equals = record
                .iter()
                .position(|&b| b == b'=')
                .ok_or_else(|| LayerError::malformed(format!("the PAX record {} has no `=`", show(record))))?;
            self.apply(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), LayerError> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            return self.xattr(name, value);
        }
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = number(key, value)?,
            b"uid" => self.uid = number(key, value)?,
            b"gid" => self.gid = number(key, value)?,
            b"mtime" => {
                self.mtime = match value {
                    b"" => None,
                    _ => Some(time(value).ok_or_else(|| bad(key, value))?),
                }
            }
            _ if key.starts_with(b"GNU.sparse.") => self.sparse.apply(&key[11..], value)?,
            _ => {}
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), LayerError> {
        // Overlay's own book-keeping has no meaning outside the overlay that wrote it, and would be
        // an order to the kernel of whoever mounts an overlay on this disk.
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            return Ok(());
        }
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(LayerError::malformed(format!(
                "the extended attribute {} has an impossible name",
                show(name)
            )));
        }
        if let Some((_, known)) = self.xattrs.iter_mut().find(|(known, _)| known == name) {
            *known = value.to_vec();
            return Ok(());
        }
        if self.xattrs.len() == MOST_XATTRS {
            return Err(LayerError::TooLarge(format!(
                "it has more than {MOST_XATTRS} extended attributes"
            )));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

/// Splits `LENGTH KEY=VALUE\n` off; the length counts itself.
fn split_record(content: &[u8]) -> Result<(&[u8], &[u8]), LayerError> {
    let broken = || LayerError::malformed(format!("the PAX header {} breaks the format", show(content)));
    let space = content.iter().take(20).position(|&b| b == b' ').ok_or_else(broken)?;
    let length = decimal(&content[..space])
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(broken)?;
    if length < space + 2 || length > content.len() || content[length - 1] != b'\n' {
        return Err(broken());
    }
    Ok((&content[space + 1..length - 1], &content[length..]))
}

fn bad(key: &[u8], value: &[u8]) -> LayerError {
    LayerError::malformed(format!(
        "the PAX record {} has the impossible value {}",
        show(key),
        show(value)
    ))
}

/// An empty value takes an override back.
fn name(value: &[u8]) -> Result<Option<Vec<u8>>, LayerError> {
    if value.contains(&0) {
        return Err(LayerError::malformed(format!(
            "the PAX path {} has a NUL byte in it",
            show(value)
        )));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn number(key: &[u8], value: &[u8]) -> Result<Option<u64>, LayerError> {
    if value.is_empty() {
        return Ok(None);
    }
    decimal(value).map(Some).ok_or_else(|| bad(key, value))
}

/// Decimal digits and nothing else.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`; finer than nanoseconds is cut off towards the past.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |&b| b == b'.');
    let whole = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0u32, |n, at| {
        n * 10 + fraction.get(at).map_or(0, |d| u32::from(d - b'0'))
    });
    let finer = fraction.iter().skip(9).any(|&d| d != b'0');
    if !negative {
        return Some((whole, nanos));
    }
    let nanos = nanos + u32::from(finer);
    if nanos == 0 {
        Some((-whole, 0))
    } else {
        Some((-whole - 1, 1_000_000_000 - nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len() + 2;
        while format!("{length} ").len() + body.len() != length {
            length += 1;
        }
        [format!("{length} ").as_bytes(), &body].concat()
    }

    fn read(records: &[(&str, &[u8])]) -> Result<Pax, LayerError> {
        let content: Vec<u8> = records.iter().flat_map(|(k, v)| record(k, v)).collect();
        let mut pax = Pax::default();
        pax.read(&content)?;
        Ok(pax)
    }

    #[test]
    fn overrides_are_read_and_unknown_keywords_ignored() {
        let pax = read(&[
            ("path", b"a/\xff=b"),
            ("size", b"8589934592"),
            ("uid", b"4294967295"),
            ("comment", b"nothing"),
            ("SCHILY.xattr.user.x", b"\0\n=binary"),
        ])
        .expect("good records");
        assert_eq!(pax.path.as_deref(), Some(&b"a/\xff=b"[..]));
        assert_eq!((pax.size, pax.uid), (Some(8_589_934_592), Some(4_294_967_295)));
        assert_eq!(pax.xattrs, vec![(b"user.x".to_vec(), b"\0\n=binary".to_vec())]);
    }

    #[test]
    fn times_keep_nanoseconds_on_both_sides_of_the_epoch() {
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"4102444800.123456789"), Some((4_102_444_800, 123_456_789)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-0.0000000001"), Some((-1, 999_999_999)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"1e9"), None);
        assert_eq!(time(b""), None);
    }

    #[test]
    fn overlay_attributes_are_left_out() {
        let pax = read(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.redirect", b"/x"),
        ]);
        assert!(pax.expect("good records").xattrs.is_empty());
    }

    #[test]
    fn broken_records_are_refused() {
        for content in [
            &b"5 a=b"[..],
            b"99 a=b\n",
            b"x a=b\n",
            b"0 \n",
            b"3 \n",
            b"7 a-bc\n",
            b"99999999999999999999999 a=b\n",
        ] {
            assert!(Pax::default().read(content).is_err(), "{}", content.escape_ascii());
        }
        assert!(read(&[("size", b"-1")]).is_err());
        assert!(read(&[("size", b"99999999999999999999")]).is_err());
        assert!(read(&[("path", b"a\0b")]).is_err());
    }
}
