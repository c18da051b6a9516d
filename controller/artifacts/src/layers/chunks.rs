//! A list that is as long as an image has entries.

/// Items of one piece.
const PIECE: usize = 1024;

/// A list in pieces of its own: it grows without a copy, and gives its memory back while it is used up.
#[derive(Debug)]
pub struct Chunks<T>(Vec<Vec<T>>);

impl<T> Chunks<T> {
    /// Appends one.
    pub fn push(&mut self, item: T) {
        match self.0.last_mut() {
            Some(last) if last.len() < PIECE => last.push(item),
            _ => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(item);
                self.0.push(piece);
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self.0.split_last() {
            Some((last, full)) => full.len() * PIECE + last.len(),
            None => 0,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One of them, counted from 0.
    pub fn get(&self, at: usize) -> Option<&T> {
        self.0.get(at / PIECE)?.get(at % PIECE)
    }

    /// One of them, counted from 0.
    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.0.get_mut(at / PIECE)?.get_mut(at % PIECE)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }
}

impl<T> IntoIterator for Chunks<T> {
    type Item = T;
    type IntoIter = std::iter::Flatten<std::vec::IntoIter<Vec<T>>>;

    /// All of them, in order; the memory of each piece goes with its last item.
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().flatten()
    }
}

impl<T> FromIterator<T> for Chunks<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut all = Chunks::default();
        for item in items {
            all.push(item);
        }
        all
    }
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Chunks(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_any_length_is_what_was_pushed() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let mut all: Chunks<usize> = (0..length).collect();
            assert_eq!((all.len(), all.is_empty()), (length, length == 0));
            assert!(all.iter().copied().eq(0..length));
            for at in 0..length {
                *all.get_mut(at).expect("it was pushed") += 1;
                assert_eq!(all.get(at), Some(&(at + 1)));
            }
            assert_eq!(all.get(length), None);
            assert_eq!(all.get_mut(length), None);
            assert!(all.into_iter().eq(1..=length));
        }
    }
}
