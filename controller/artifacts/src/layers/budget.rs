//! What one image may use up, over all its layers.

use super::LayerError;
use crate::types::Limits;

/// What is left of an image's bounds. Nothing is ever given back: what a later layer hides was held, too.
pub struct Budget {
    most_entries: u64,
    entries: u64,
}

impl Budget {
    /// All that `limits` allow.
    pub fn new(limits: &Limits) -> Budget {
        Budget {
            most_entries: limits.entries,
            entries: limits.entries,
        }
    }

    /// Takes one entry of a layer, or one directory that only a path implies.
    ///
    /// # Errors
    /// There are too many.
    pub fn entry(&mut self) -> Result<(), LayerError> {
        let most = self.most_entries;
        let too_many = || {
            LayerError::TooLarge(format!(
                "the image has more than {most} entries (implied directories count)"
            ))
        };
        self.entries = self.entries.checked_sub(1).ok_or_else(too_many)?;
        Ok(())
    }
}

impl Default for Budget {
    fn default() -> Self {
        Budget::new(&Limits::default())
    }
}
