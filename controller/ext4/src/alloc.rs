//! Which blocks are taken: a cursor that only moves forward, and the blocks that came back.
//!
//! File data arrives before its size is known, so blocks are given out one run after another, around the places that
//! the layout reserves. Blocks of discarded data are given out again to metadata, and to data once the end is reached.

use std::collections::VecDeque;
use std::ops::Range;

use crate::layout::Layout;

/// Gives out the free blocks of a layout.
#[derive(Debug)]
pub(crate) struct Allocator {
    layout: Layout,
    /// What is left of the free range that the cursor is in.
    current: Range<u32>,
    /// The ranges of the same group that follow it.
    following: VecDeque<Range<u32>>,
    /// The group that comes next.
    next_group: u32,
    /// Blocks that were given out and came back.
    returned: VecDeque<Range<u32>>,
    /// Number of blocks that are given out now.
    in_use: u64,
}

impl Allocator {
    pub(crate) fn new(layout: Layout) -> Allocator {
        Allocator {
            layout,
            current: 0..0,
            following: VecDeque::new(),
            next_group: 0,
            returned: VecDeque::new(),
            in_use: 0,
        }
    }

    /// The layout that blocks are given out by.
    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Number of blocks that were given out and did not come back.
    pub(crate) fn in_use(&self) -> u64 {
        self.in_use
    }

    /// Up to `want` blocks in one piece, or nothing when every block is taken.
    pub(crate) fn take(&mut self, want: u32) -> Option<Range<u32>> {
        self.take_fresh(want).or_else(|| self.take_returned(want))
    }

    /// Up to `want` blocks in one piece for metadata, from what came back if possible.
    pub(crate) fn take_for_metadata(&mut self, want: u32) -> Option<Range<u32>> {
        let suits = |range: &Range<u32>| range.len() as u32 >= want;
        if self.returned.front().is_some_and(suits) {
            return self.take_returned(want);
        }
        self.take(want)
    }

    fn take_fresh(&mut self, want: u32) -> Option<Range<u32>> {
        while self.current.is_empty() {
            if let Some(range) = self.following.pop_front() {
                self.current = range;
            } else if self.next_group < self.layout.groups() {
                self.following = self.layout.gaps(self.next_group).into();
                self.next_group += 1;
            } else {
                return None;
            }
        }
        let taken = split_front(&mut self.current, want);
        self.in_use += taken.len() as u64;
        Some(taken)
    }

    fn take_returned(&mut self, want: u32) -> Option<Range<u32>> {
        let front = self.returned.front_mut()?;
        let taken = split_front(front, want);
        if front.start == front.end {
            self.returned.pop_front();
        }
        self.in_use += taken.len() as u64;
        Some(taken)
    }

    /// Takes blocks back.
    pub(crate) fn give_back(&mut self, range: Range<u32>) {
        self.in_use -= range.len() as u64;
        self.free_unused(range);
    }

    /// Takes back what was given out and is not among `used`, the ranges that are still needed.
    pub(crate) fn reclaim(&mut self, used: impl Iterator<Item = Range<u32>> + Clone) {
        if used.clone().map(|range| range.len() as u64).sum::<u64>() == self.in_use {
            return;
        }
        let mut known: Vec<Range<u32>> = used.chain(self.returned.iter().cloned()).collect();
        known.sort_unstable_by_key(|range| range.start);
        let mut known = known.into_iter().peekable();
        let (cursor, layout) = (self.cursor(), self.layout);
        let mut next = 0;
        for gap in (0..layout.groups()).flat_map(|group| layout.gaps(group)) {
            let end = gap.end.min(cursor);
            // A range may reach over the border of two groups.
            next = gap.start.max(next);
            while let Some(range) = known.next_if(|range| range.start < end) {
                if next < range.start {
                    self.give_back(next..range.start);
                }
                next = range.end;
            }
            if next < end {
                self.give_back(next..end);
            }
        }
    }

    /// Takes blocks in that the layout had reserved and that are not needed after all.
    pub(crate) fn free_unused(&mut self, range: Range<u32>) {
        if !range.is_empty() {
            self.returned.push_back(range);
        }
    }

    /// Brings what came back into ascending order, neighbours joined.
    pub(crate) fn sort_returned(&mut self) {
        let ranges = self.returned.make_contiguous();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut joined: VecDeque<Range<u32>> = VecDeque::with_capacity(ranges.len());
        for range in ranges.iter() {
            match joined.back_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => joined.push_back(range.clone()),
            }
        }
        self.returned = joined;
    }

    /// What came back and was not given out again.
    pub(crate) fn returned(&self) -> impl Iterator<Item = &Range<u32>> {
        self.returned.iter()
    }

    /// The first block that was never given out; everything free below it has come back.
    pub(crate) fn cursor(&self) -> u32 {
        if !self.current.is_empty() {
            self.current.start
        } else if let Some(next) = self.following.front() {
            next.start
        } else {
            self.layout.group(self.next_group).start.min(self.layout.blocks())
        }
    }
}

fn split_front(range: &mut Range<u32>, want: u32) -> Range<u32> {
    let end = range.end.min(range.start.saturating_add(want));
    let taken = range.start..end;
    range.start = end;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_free_block_is_given_out_once_and_no_reserved_one() {
        let layout = Layout::for_groups(9);
        let mut taken = vec![false; layout.blocks() as usize];
        for group in 0..layout.groups() {
            for range in layout.reserved(group) {
                for block in range {
                    assert!(!std::mem::replace(&mut taken[block as usize], true), "{block}");
                }
            }
        }
        let mut allocator = Allocator::new(layout);
        while let Some(run) = allocator.take(1000) {
            assert!(run.len() <= 1000);
            for block in run {
                assert!(!std::mem::replace(&mut taken[block as usize], true), "{block}");
            }
        }
        assert!(taken.iter().all(|taken| *taken));
        assert_eq!(allocator.cursor(), layout.blocks());
    }

    #[test]
    fn metadata_takes_returned_blocks_first_and_data_takes_them_last() {
        let mut allocator = Allocator::new(Layout::for_groups(1));
        let first = allocator.take(10).unwrap_or_default();
        allocator.give_back(first.clone());
        assert_ne!(allocator.take(10), Some(first.clone()));
        assert_eq!(allocator.take_for_metadata(4), Some(first.start..first.start + 4));
        while let Some(run) = allocator.take_fresh(u32::MAX) {
            assert!(run.start > first.end);
        }
        assert_eq!(allocator.take(100), Some(first.start + 4..first.end));
        assert_eq!(allocator.take(1), None);
    }
}
