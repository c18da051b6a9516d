//! How long is waited after failures.

use std::time::Duration;

/// The first pause after a transient failure; doubles with each further one.
pub const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause, and the pause after a terminal failure.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The longest Retry-After that is believed.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Random enough to spread retries, and the same for the same seed: SplitMix64.
#[derive(Debug)]
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The pause after the n-th failure in a row, before jitter.
pub(super) fn pause_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(10);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE)
}

/// 90 % to 110 %.
pub(super) fn jittered(pause: Duration, random: u64) -> Duration {
    let spread = pause.as_millis() as u64 / 5;
    pause - Duration::from_millis(spread / 2) + Duration::from_millis(random % spread.max(1))
}
