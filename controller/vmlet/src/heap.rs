//! What a resident process keeps of the memory that it once needed. All of it is advice to glibc's allocator, and nothing
//! with another one.

use std::time::Duration;

/// How often freed memory is given back. What is left to do takes a millisecond or two.
const TURN: Duration = Duration::from_secs(10);

/// Lets all threads share two heaps: with the eight per processor that glibc allows, what one thread freed is of no use
/// to the others, and a resident process stays a third larger. To be called before there is another thread.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a setting of the allocator, made before there is another thread. A refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives freed memory back to the system, for ever. By itself glibc does that at the end of a heap only: after pulls and
/// long lists a process was seen to hold 22 MiB of nothing.
pub async fn give_back() {
    loop {
        tokio::time::sleep(TURN).await;
        #[cfg(target_env = "gnu")]
        // SAFETY: it takes the allocator's own locks, and touches only what is free.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
