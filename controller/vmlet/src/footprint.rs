//! What a resident process keeps of the memory that it once needed. All of it is advice: to glibc's allocator, and to the
//! kernel. With another C library only the kernel gets it.

use std::time::Duration;

use tokio::time::Instant;

/// How often memory is given back. What is left to do takes a millisecond or two.
const TURN: Duration = Duration::from_secs(10);

/// When in a turn. Heartbeats begin with the process and come as often; each touches more of the program than all between
/// two of them.
const PHASE: Duration = Duration::from_secs(2);

/// Lets all threads share two heaps: with the eight per processor that glibc allows, what one thread freed is of no use
/// to the others, and a resident process stays a third larger. To be called before there is another thread.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a setting of the allocator, made before there is another thread. A refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives back what is not in use, for ever: freed memory, and the program's own pages.
pub async fn give_back() {
    let mut turns = tokio::time::interval_at(Instant::now() + PHASE, TURN);
    loop {
        turns.tick().await;
        // By itself glibc does that at the end of a heap only: after pulls and long lists a process was seen to hold
        // 22 MiB of nothing.
        #[cfg(target_env = "gnu")]
        // SAFETY: it takes the allocator's own locks, and touches only what is free.
        unsafe {
            libc::malloc_trim(0);
        }
        #[cfg(target_os = "linux")]
        code::unmap();
    }
}

/// The pages of the program itself. Around each that is touched the kernel maps 64 KiB, and what was needed once, for a
/// pull or for the start, stays: some 18 MiB of which an idle process touches a part only.
#[cfg(target_os = "linux")]
mod code {
    use std::ffi::{c_int, c_void};
    use std::ops::Range;

    /// Unmaps what nobody can have changed of the program and its libraries. The pages stay in the page cache, and are
    /// mapped again where they are touched.
    pub fn unmap() {
        // SAFETY: the callback keeps to the contract of dl_iterate_phdr(3), and neither unwinds nor keeps anything.
        unsafe {
            libc::dl_iterate_phdr(Some(each), std::ptr::null_mut());
        }
    }

    unsafe extern "C" fn each(object: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
        // SAFETY: dl_iterate_phdr(3) hands out a valid description, whose headers stay where they are for the call.
        let (base, headers) = unsafe {
            let object = &*object;
            let headers = std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum));
            (object.dlpi_addr, headers)
        };
        for header in headers {
            if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
                continue;
            }
            let Some(pages) = whole_pages(base, header.p_vaddr, header.p_memsz) else {
                continue;
            };
            // SAFETY: a private mapping of a file, never writable, relocations included: to drop its pages is to read
            // the same bytes again. A refusal changes nothing.
            unsafe {
                libc::madvise(pages.start as *mut c_void, pages.end - pages.start, libc::MADV_DONTNEED);
            }
        }
        0
    }

    /// The pages that lie in a segment as a whole.
    fn whole_pages(base: u64, at: u64, size: u64) -> Option<Range<usize>> {
        // 64 KiB is the largest page that Linux knows, so that it divides into whole ones of whatever size.
        const PAGE: usize = 64 << 10;
        let start = usize::try_from(base.checked_add(at)?).ok()?;
        let end = start.checked_add(usize::try_from(size).ok()?)?;
        let pages = start.checked_next_multiple_of(PAGE)?..end / PAGE * PAGE;
        (!pages.is_empty()).then_some(pages)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// KiB of files that this process has mapped and in memory.
        fn resident() -> usize {
            let status = std::fs::read_to_string("/proc/self/status").expect("proc");
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:"));
            let size = line.and_then(|line| line.split_whitespace().next());
            size.and_then(|size| size.parse().ok()).expect("RssFile")
        }

        #[test]
        fn the_program_goes_on_with_fewer_pages_of_itself() {
            let before = resident();
            unmap();
            let after = resident();
            assert!(after < before, "{before} KiB before, {after} KiB after");
        }

        #[test]
        fn only_whole_pages_of_a_segment_count() {
            assert_eq!(whole_pages(0x10_0000, 0x1, 0x2_0000), Some(0x11_0000..0x12_0000));
            assert_eq!(whole_pages(0x10_0000, 0, 0x1_0000), Some(0x10_0000..0x11_0000));
            assert_eq!(whole_pages(0x10_0000, 0x1, 0xffff), None);
            assert_eq!(whole_pages(0, 0, 0), None);
            assert_eq!(whole_pages(u64::MAX, 1, 1), None);
        }
    }
}
