//! Sparse files in tars: GNU's PAX formats 0.0, 0.1 and 1.0, and the old GNU header.

use std::io::Read;

use super::header::BLOCK;
use super::pax::decimal;
use super::{LayerError, show};

/// More data regions than any real file has; 16 MiB of memory.
pub(super) const MOST_REGIONS: usize = 1 << 20;

pub(super) fn too_many_regions() -> LayerError {
    LayerError::TooLarge(format!("the sparse file has more than {MOST_REGIONS} regions"))
}

/// Where the data of a sparse file lies: regions in order, holes between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseMap {
    /// (offset, length) of the data.
    pub regions: Vec<(u64, u64)>,
    /// Size of the file.
    pub size: u64,
}

impl SparseMap {
    /// Checks that regions are in order, do not overlap, lie inside the file and hold exactly
    /// the `stored` bytes that the archive has.
    pub fn new(regions: Vec<(u64, u64)>, size: u64, stored: u64) -> Result<SparseMap, LayerError> {
        let mut end = 0u64;
        let mut sum = 0u64;
        for &(offset, length) in &regions {
            if offset < end {
                return Err(LayerError::malformed(
                    "the regions of a sparse file overlap or are out of order",
                ));
            }
            end = offset
                .checked_add(length)
                .filter(|&end| end <= size)
                .ok_or_else(|| LayerError::malformed("a region of a sparse file lies behind its end"))?;
            sum += length;
        }
        if sum != stored {
            return Err(LayerError::malformed(format!(
                "the regions of a sparse file hold {sum} bytes, the archive {stored}"
            )));
        }
        Ok(SparseMap { regions, size })
    }

    /// From numbers of an old GNU header.
    pub fn from_signed(pairs: &[(i128, i128)], size: u64, stored: u64) -> Result<SparseMap, LayerError> {
        let regions = pairs
            .iter()
            .map(|&(offset, length)| u64::try_from(offset).ok().zip(u64::try_from(length).ok()))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| LayerError::malformed("a sparse table has a negative or huge number in it"))?;
        SparseMap::new(regions, size, stored)
    }
}

/// What the `GNU.sparse.*` records of a PAX header say.
#[derive(Debug, Default)]
pub struct PaxSparse {
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    offset: Option<u64>,
    regions: Vec<(u64, u64)>,
    has_map: bool,
}

impl PaxSparse {
    /// Takes one record; `key` is without `GNU.sparse.`.
    pub fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), LayerError> {
        let number = || {
            decimal(value)
                .ok_or_else(|| LayerError::malformed(format!("the sparse record {} is no number", show(value))))
        };
        match key {
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"numblocks" => self.has_map = true,
            b"offset" => self.offset = Some(number()?),
            b"numbytes" => {
                let offset = self
                    .offset
                    .take()
                    .ok_or_else(|| LayerError::malformed("a sparse record has no offset"))?;
                self.regions.push((offset, number()?));
                self.has_map = true;
            }
            b"map" => {
                self.regions.clear();
                self.has_map = true;
                if !value.is_empty() {
                    let numbers = value
                        .split(|&b| b == b',')
                        .map(decimal)
                        .collect::<Option<Vec<_>>>()
                        .filter(|numbers| numbers.len() % 2 == 0)
                        .ok_or_else(|| LayerError::malformed("a sparse map is no list of pairs"))?;
                    self.regions
                        .extend(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether they make their member a sparse file: by a map, or by a version of which the map is in the member's data.
    pub fn is_sparse(&self) -> bool {
        match (self.major, self.minor) {
            (None, None) | (Some(0), Some(0 | 1)) => self.has_map,
            version => version == (Some(1), Some(0)),
        }
    }

    /// The member's real name (0.1 and 1.0). That of a member that is not sparse says nothing, as in Go's archive/tar.
    pub fn real_name(&self) -> Option<&Vec<u8>> {
        self.name.as_ref().filter(|name| self.is_sparse() && !name.is_empty())
    }

    /// The map, if the member is sparse: from the records (0.0, 0.1), or from the start of the
    /// member's data (1.0). `stored` is what the archive holds for the member; it is reduced by
    /// what is read here.
    pub fn map(self, data: &mut impl Read, stored: &mut u64) -> Result<Option<SparseMap>, LayerError> {
        let size = || {
            self.size
                .ok_or_else(|| LayerError::malformed("a sparse file does not tell its real size"))
        };
        match (self.major, self.minor) {
            (Some(1), Some(0)) => {
                let size = size()?;
                let regions = read_map(data, stored)?;
                SparseMap::new(regions, size, *stored).map(Some)
            }
            (None, None) | (Some(0), Some(0 | 1)) if self.has_map => {
                let size = size()?;
                SparseMap::new(self.regions, size, *stored).map(Some)
            }
            (None, None) | (Some(0), Some(0 | 1)) => Ok(None),
            _ => Err(LayerError::Unsupported(
                "a sparse file is in an unknown version of GNU's format".into(),
            )),
        }
    }
}

/// The map of format 1.0: decimal lines, padded to a block.
fn read_map(data: &mut impl Read, stored: &mut u64) -> Result<Vec<(u64, u64)>, LayerError> {
    let mut lines = Lines {
        data,
        stored,
        block: [0; BLOCK],
        at: BLOCK,
    };
    let count = usize::try_from(lines.number()?).unwrap_or(usize::MAX);
    if count > MOST_REGIONS {
        return Err(too_many_regions());
    }
    let mut regions = Vec::new();
    for _ in 0..count {
        regions.push((lines.number()?, lines.number()?));
    }
    Ok(regions)
}

struct Lines<'a, R> {
    data: &'a mut R,
    stored: &'a mut u64,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, LayerError> {
        let mut digits = Vec::with_capacity(20);
        loop {
            if self.at == BLOCK {
                *self.stored = self
                    .stored
                    .checked_sub(BLOCK as u64)
                    .ok_or_else(|| LayerError::malformed("the map of a sparse file is cut off"))?;
                self.data.read_exact(&mut self.block).map_err(LayerError::Read)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => break,
                _ if digits.len() < 20 => digits.push(byte),
                _ => return Err(LayerError::malformed("the map of a sparse file is not made of numbers")),
            }
        }
        decimal(&digits).ok_or_else(|| LayerError::malformed("the map of a sparse file is not made of numbers"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_must_be_in_order_inside_and_complete() {
        assert!(SparseMap::new(vec![(0, 2), (4, 2)], 10, 4).is_ok());
        assert!(SparseMap::new(vec![(4, 2), (0, 2)], 10, 4).is_err());
        assert!(SparseMap::new(vec![(0, 3), (2, 2)], 10, 5).is_err());
        assert!(SparseMap::new(vec![(8, 3)], 10, 3).is_err());
        assert!(SparseMap::new(vec![(u64::MAX, 2)], u64::MAX, 2).is_err());
        assert!(SparseMap::new(vec![(0, 2)], 10, 3).is_err());
        assert!(SparseMap::from_signed(&[(-1, 2)], 10, 2).is_err());
    }

    #[test]
    fn a_map_in_the_data_is_read_and_its_blocks_are_not_content() {
        let mut block = b"2\n0\n3\n4096\n2\n".to_vec();
        block.resize(512, 0);
        let mut sparse = PaxSparse::default();
        for (key, value) in [("major", "1"), ("minor", "0"), ("realsize", "5000")] {
            sparse.apply(key.as_bytes(), value.as_bytes()).expect("good");
        }
        let mut stored = 512 + 5;
        let map = sparse.map(&mut &block[..], &mut stored).expect("good").expect("sparse");
        assert_eq!(stored, 5);
        assert_eq!(
            map,
            SparseMap {
                regions: vec![(0, 3), (4096, 2)],
                size: 5000
            }
        );
    }

    #[test]
    fn a_map_that_claims_too_much_is_refused() {
        let mut block = b"99999999\n".to_vec();
        block.resize(512, b'\n');
        assert!(read_map(&mut &block[..], &mut 512).is_err());
        assert!(read_map(&mut &[b'1'; 512][..], &mut 512).is_err());
        assert!(read_map(&mut &block[..], &mut 100).is_err());
    }
}
