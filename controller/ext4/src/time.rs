//! Timestamps: 34 bits of seconds and 30 of nanoseconds.

/// A point in time, in seconds and nanoseconds since 1970.
///
/// ext4 keeps the years 1901 to 2446; what lies outside is moved to the nearest end when it is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00:00 UTC; negative before.
    pub sec: i64,
    /// Nanoseconds that follow `sec`, below 1 000 000 000.
    pub nsec: u32,
}

/// The two words of an inode: seconds, and nanoseconds with two more bits of seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) seconds: u32,
    pub(crate) extra: u32,
}

const EARLIEST: Timestamp = Timestamp {
    sec: -0x8000_0000,
    nsec: 0,
};
const LATEST: Timestamp = Timestamp {
    sec: 0x3_7fff_ffff,
    nsec: 999_999_999,
};

impl Timestamp {
    /// A time in whole seconds.
    pub fn from_seconds(sec: i64) -> Timestamp {
        Timestamp { sec, nsec: 0 }
    }

    pub(crate) fn encode(self) -> Encoded {
        let time = self.clamp(EARLIEST, LATEST);
        let nsec = time.nsec.min(LATEST.nsec);
        // The low word is signed: the epoch bits say how often 2^32 must be added to it.
        let low = time.sec as i32;
        let epoch = ((time.sec - i64::from(low)) >> 32) as u32 & 3;
        Encoded {
            seconds: low as u32,
            extra: nsec << 2 | epoch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of "Inode Timestamps" in the kernel's documentation.
    fn decode(encoded: Encoded) -> (i64, u32) {
        let sec = i64::from(encoded.seconds as i32) + (i64::from(encoded.extra & 3) << 32);
        (sec, encoded.extra >> 2)
    }

    #[test]
    fn every_boundary_of_the_documented_ranges_survives() {
        for sec in [
            -0x8000_0000,
            -1,
            0,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x1_0000_0000,
            0x1_7fff_ffff,
            0x1_8000_0000,
            0x2_7fff_ffff,
            0x2_8000_0000,
            0x3_7fff_ffff,
        ] {
            let time = Timestamp { sec, nsec: 123_456_789 };
            assert_eq!(decode(time.encode()), (sec, 123_456_789), "{sec:#x}");
        }
    }

    #[test]
    fn times_outside_the_range_move_to_its_ends() {
        let encode = |sec| decode(Timestamp { sec, nsec: 5 }.encode());
        assert_eq!(encode(i64::MIN), (-0x8000_0000, 0));
        assert_eq!(encode(i64::MAX), (0x3_7fff_ffff, 999_999_999));
    }
}
