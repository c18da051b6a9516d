//! Size, bitmaps, descriptors and superblocks: what is known only when everything else has its place.

use crate::checksum::file_system_seed;
use crate::error::Error;
use crate::finish::bitmap_sum;
use crate::layout::{self, BLOCK, BLOCK64, GROUPS_PER_FLEX, INODES_PER_GROUP, Layout};
use crate::options::{FreeSpace, Size};
use crate::summary::Summary;
use crate::superblock::{GroupFigures, SUPERBLOCK_SIZE, Totals, descriptor, superblock};
use crate::writer::Writer;

/// Makes sure, before any inode table is written, that there are enough of them.
pub(crate) fn check_inodes(writer: &Writer, needed: u64) -> Result<(), Error> {
    let available = u64::from(writer.allocator.layout().groups()) * u64::from(INODES_PER_GROUP);
    if needed > available {
        return Err(Error::TooManyInodes {
            needed,
            available,
            size: writer.size,
        });
    }
    Ok(())
}

/// Decides the size, and returns blocks that only a larger one would have reserved.
pub(crate) fn choose_layout(writer: &mut Writer, inodes: u32) -> Result<Layout, Error> {
    let most = writer.allocator.layout();
    let chosen = match writer.options.size {
        Size::Fixed(_) => most,
        Size::Auto { free } => smallest(writer, most, inodes, free).ok_or_else(|| writer.full())?,
    };
    let cursor = writer.allocator.cursor();
    let last_flex = (chosen.groups() - 1) / GROUPS_PER_FLEX * GROUPS_PER_FLEX;
    let kept = chosen.reserved(last_flex);
    for (planned, kept) in most.reserved(last_flex).into_iter().zip(kept) {
        writer.allocator.free_unused(kept.end..planned.end.min(cursor));
    }
    writer.allocator.sort_returned();
    Ok(chosen)
}

/// The smallest number of whole groups that holds everything and leaves `free`.
fn smallest(writer: &Writer, most: Layout, inodes: u32, free: FreeSpace) -> Option<Layout> {
    let content = writer.allocator.in_use();
    let share = |of: u64| of.saturating_mul(free.percent.into()) / 100;
    let blocks = content + share(content).max(free.bytes.div_ceil(BLOCK64));
    let inodes = u64::from(inodes) + share(inodes.into());
    let mut overhead = 0;
    for groups in 1..=most.groups() {
        let layout = Layout::for_groups(groups);
        // Each group adds what it alone reserves; the shared metadata of a flex group grows with its members.
        overhead += layout.overhead_of_last();
        if u64::from(layout.blocks()) >= overhead + blocks
            && layout.blocks() >= writer.allocator.cursor()
            && u64::from(groups) * u64::from(INODES_PER_GROUP) >= inodes
        {
            return Some(layout);
        }
    }
    None
}

/// The inodes of an image.
pub(crate) struct Inodes<'a> {
    /// Those in use, the reserved ones among them.
    pub(crate) count: u32,
    /// How many of each group are directories.
    pub(crate) directories: &'a [u32],
    /// Whether some hold the value of an extended attribute.
    pub(crate) values: bool,
}

/// Writes everything that describes groups, and makes the file durable.
pub(crate) fn write(
    writer: &mut Writer,
    layout: Layout,
    inodes: Inodes<'_>,
    journal_map: &[u8; 60],
    wanted: &dyn Fn() -> bool,
) -> Result<Summary, Error> {
    let Inodes {
        count: inodes,
        directories,
        values,
    } = inodes;
    let seed = file_system_seed(&writer.options.uuid);
    let returned: Vec<_> = writer.allocator.returned().cloned().collect();
    let cursor = writer.allocator.cursor();
    let mut descriptors = Vec::with_capacity(layout.descriptor_blocks() as usize * BLOCK);
    let mut free_blocks = 0;
    // Ranges are sorted: each group looks at those from the first that reaches into it.
    let mut returned = returned.as_slice();
    for group in 0..layout.groups() {
        let blocks = layout.group(group);
        while returned.first().is_some_and(|range| range.end <= blocks.start) {
            returned = &returned[1..];
        }
        let mut figures = GroupFigures {
            free_inodes: INODES_PER_GROUP,
            unused_inodes: INODES_PER_GROUP,
            directories: directories.get(group as usize).copied().unwrap_or(0),
            ..GroupFigures::default()
        };
        let first_inode = group * INODES_PER_GROUP;
        if inodes > first_inode {
            let used = (inodes - first_inode).min(INODES_PER_GROUP);
            let mut bitmap = vec![0xff; BLOCK];
            clear(&mut bitmap, used..INODES_PER_GROUP);
            let sum = bitmap_sum(seed, &bitmap[..INODES_PER_GROUP as usize / 8]);
            writer.output.write(layout::inode_bitmap(group), &bitmap)?;
            figures.free_inodes -= used;
            figures.unused_inodes -= used;
            figures.inode_bitmap = Some(sum);
        }
        let reserved = layout.reserved(group);
        let derivable = blocks.start >= cursor && !group.is_multiple_of(GROUPS_PER_FLEX) && group + 1 < layout.groups();
        if derivable {
            let taken: usize = reserved.iter().map(|range| range.len()).sum();
            figures.free_blocks = blocks.len() as u32 - taken as u32;
        } else {
            // Bits beyond the end of the file system stay set.
            let mut bitmap = vec![0xff; BLOCK];
            let within = |block: u32| block.clamp(blocks.start, blocks.end) - blocks.start;
            let free = returned.iter().take_while(|range| range.start < blocks.end);
            for range in free {
                clear(&mut bitmap, within(range.start)..within(range.end));
            }
            for gap in layout.gaps(group) {
                clear(&mut bitmap, within(gap.start.max(cursor))..within(gap.end));
            }
            let sum = bitmap_sum(seed, &bitmap);
            figures.free_blocks = bitmap.iter().map(|byte| byte.count_zeros()).sum();
            figures.block_bitmap = Some(sum);
            writer.output.write(layout::block_bitmap(group), &bitmap)?;
        }
        free_blocks += u64::from(figures.free_blocks);
        descriptors.extend_from_slice(&descriptor(group, &figures, seed));
    }
    descriptors.resize(descriptors.len().next_multiple_of(BLOCK), 0);
    let totals = Totals {
        free_blocks,
        free_inodes: layout.groups() * INODES_PER_GROUP - inodes,
        value_inodes: values,
    };
    for group in std::iter::once(0).chain(layout.backups()) {
        let start = layout.group(group).start;
        let bytes = superblock(&writer.options, &layout, &totals, journal_map, group);
        // The first block of the disk leaves 1024 bytes to boot loaders.
        let offset = if group == 0 { 1024 } else { 0 };
        let mut block = vec![0; BLOCK];
        block[offset..offset + SUPERBLOCK_SIZE].copy_from_slice(&bytes);
        writer.output.write(start, &block)?;
        writer.output.write(start + 1, &descriptors)?;
    }
    let size = match writer.options.size {
        Size::Fixed(bytes) => bytes,
        Size::Auto { .. } => u64::from(layout.blocks()) * BLOCK64,
    };
    writer.output.set_len(size)?;
    Error::unless(wanted)?;
    let checksums = writer.output.sync()?;
    Ok(Summary {
        size,
        used: (u64::from(layout.blocks()) - free_blocks) * BLOCK64,
        free: free_blocks * BLOCK64,
        inodes: inodes.into(),
        free_inodes: totals.free_inodes.into(),
        checksums,
    })
}

/// Clears bits, whole bytes at a time where possible.
fn clear(bitmap: &mut [u8], bits: std::ops::Range<u32>) {
    let (mut bit, end) = (bits.start as usize, bits.end as usize);
    while bit < end {
        if bit.is_multiple_of(8) && end - bit >= 8 {
            let bytes = (end - bit) / 8;
            bitmap[bit / 8..bit / 8 + bytes].fill(0);
            bit += bytes * 8;
        } else {
            bitmap[bit / 8] &= !(1 << (bit % 8));
            bit += 1;
        }
    }
}
