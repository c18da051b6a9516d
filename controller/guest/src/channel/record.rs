//! The 64-byte record by which a guest says how it ended.

/// Size of an encoded record, in bytes.
pub const RECORD_SIZE: usize = 64;

/// How often a guest writes its record: a read of the ring buffer pops what it reads, so a host
/// that crashes between reading and remembering finds the next copy.
pub const RECORD_COPIES: usize = 8;

const MAGIC: &[u8; 4] = b"VMLX";
const VERSION: u8 = 1;
const MESSAGE: std::ops::Range<usize> = 28..60;

/// Why a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitReason {
    /// The workload ended by itself; the exit code says how.
    Exited = 1,
    /// The host asked for a shutdown and the guest followed within the grace period.
    Shutdown = 2,
    /// The host asked for a shutdown, and what still ran after the grace period was killed.
    ShutdownForced = 3,
    /// Somebody inside the guest asked for power-off (or halt).
    PowerOff = 4,
    /// Neither an entrypoint nor an init was found.
    NothingToRun = 5,
    /// The entrypoint (or the init) could not be executed.
    CannotExecute = 6,
    /// The configuration is missing or broken.
    BadConfig = 7,
    /// No disk has the serial of the root disk.
    RootNotFound = 8,
    /// The root file system could not be mounted.
    RootNotMountable = 9,
    /// Preparing the root failed (files, network, users).
    SetupFailed = 10,
    /// `vmlet-init` itself failed.
    InitFailed = 11,
}

impl ExitReason {
    const ALL: [ExitReason; 11] = [
        ExitReason::Exited,
        ExitReason::Shutdown,
        ExitReason::ShutdownForced,
        ExitReason::PowerOff,
        ExitReason::NothingToRun,
        ExitReason::CannotExecute,
        ExitReason::BadConfig,
        ExitReason::RootNotFound,
        ExitReason::RootNotMountable,
        ExitReason::SetupFailed,
        ExitReason::InitFailed,
    ];

    /// The reason in CamelCase, as it appears in conditions.
    pub fn as_str(self) -> &'static str {
        match self {
            ExitReason::Exited => "Exited",
            ExitReason::Shutdown => "Shutdown",
            ExitReason::ShutdownForced => "ShutdownForced",
            ExitReason::PowerOff => "PowerOff",
            ExitReason::NothingToRun => "NothingToRun",
            ExitReason::CannotExecute => "CannotExecute",
            ExitReason::BadConfig => "BadConfig",
            ExitReason::RootNotFound => "RootNotFound",
            ExitReason::RootNotMountable => "RootNotMountable",
            ExitReason::SetupFailed => "SetupFailed",
            ExitReason::InitFailed => "InitFailed",
        }
    }
}

/// How a guest ended.
///
/// On the wire: `VMLX`, version, reason, length of the message, 0, exit code (i32 LE), 16 bytes of
/// boot id, 32 bytes of message, CRC-32 of all before it (LE).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitRecord {
    /// Why.
    pub reason: ExitReason,
    /// Exit status of the workload: 0-255, `128 + signal` when a signal ended it, -1 when nothing ran.
    pub exit_code: i32,
    /// The kernel's boot id (`/proc/sys/kernel/random/boot_id`): tells a record of an earlier boot
    /// in the same VMM apart.
    pub boot_id: [u8; 16],
    /// Detail, cut to 32 bytes of UTF-8 when encoded. The whole of it is on the console.
    pub message: String,
}

impl ExitRecord {
    /// The record in its fixed size.
    pub fn encode(&self) -> [u8; RECORD_SIZE] {
        let mut bytes = [0u8; RECORD_SIZE];
        let message = cut(&self.message, MESSAGE.len());
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.reason as u8;
        bytes[6] = message.len() as u8;
        bytes[8..12].copy_from_slice(&self.exit_code.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.boot_id);
        bytes[28..28 + message.len()].copy_from_slice(message.as_bytes());
        let sum = crc32(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads one record. None: not one (torn, foreign, or of a version not known here).
    pub fn decode(bytes: &[u8]) -> Option<ExitRecord> {
        let bytes: &[u8; RECORD_SIZE] = bytes.try_into().ok()?;
        let sum = u32::from_le_bytes(bytes[60..].try_into().ok()?);
        if &bytes[..4] != MAGIC || bytes[4] != VERSION || crc32(&bytes[..60]) != sum {
            return None;
        }
        let length = usize::from(bytes[6]).min(MESSAGE.len());
        Some(ExitRecord {
            reason: ExitReason::ALL.into_iter().find(|r| *r as u8 == bytes[5])?,
            exit_code: i32::from_le_bytes(bytes[8..12].try_into().ok()?),
            boot_id: bytes[12..28].try_into().ok()?,
            message: String::from_utf8_lossy(&bytes[28..28 + length]).into_owned(),
        })
    }

    /// The newest whole record in what a ring buffer held, wherever it starts: root in the guest may
    /// have written anything before it.
    pub fn last_in(bytes: &[u8]) -> Option<ExitRecord> {
        (0..=bytes.len().checked_sub(RECORD_SIZE)?)
            .rev()
            .find_map(|at| ExitRecord::decode(&bytes[at..at + RECORD_SIZE]))
    }

    /// The boot id as the kernel prints it.
    pub fn boot_id_text(&self) -> String {
        let hex: String = self.boot_id.iter().map(|b| format!("{b:02x}")).collect();
        format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
    }
}

/// The 16 bytes of a boot id as the kernel prints it. None: not 32 hex digits.
pub fn parse_boot_id(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text
        .trim()
        .bytes()
        .filter(|b| *b != b'-')
        .map(|b| (b as char).to_digit(16).map(|d| d as u8))
        .collect::<Option<_>>()?;
    let mut id = [0u8; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(id)
}

fn cut(text: &str, length: usize) -> &str {
    let mut end = text.len().min(length);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// CRC-32 (IEEE 802.3), bit by bit: records are 60 bytes.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| {
            if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(code: i32) -> ExitRecord {
        ExitRecord {
            reason: ExitReason::Exited,
            exit_code: code,
            boot_id: parse_boot_id("01234567-89ab-cdef-0123-456789abcdef\n").expect("an id"),
            message: "ended".into(),
        }
    }

    #[test]
    fn every_reason_survives_the_round_trip() {
        for reason in ExitReason::ALL {
            let record = ExitRecord { reason, ..record(-1) };
            assert_eq!(ExitRecord::decode(&record.encode()), Some(record));
        }
    }

    #[test]
    fn the_checksum_is_the_common_crc32() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn one_changed_bit_makes_it_no_record() {
        for bit in 0..RECORD_SIZE * 8 {
            let mut bytes = record(7).encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ExitRecord::decode(&bytes), None, "bit {bit}");
        }
    }

    #[test]
    fn the_newest_record_is_found_among_garbage() {
        let mut ring = b"VMLX noise of a hostile root".to_vec();
        ring.extend(record(1).encode());
        ring.extend(record(2).encode());
        ring.extend(b"VMLXtail");
        assert_eq!(ExitRecord::last_in(&ring), Some(record(2)));
        assert_eq!(ExitRecord::last_in(b"short"), None);
        assert_eq!(ExitRecord::last_in(&[0; 200]), None);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = ExitRecord {
            message: "ä".repeat(40) + "x",
            ..record(0)
        };
        let short = ExitRecord::decode(&long.encode()).expect("a record");
        assert_eq!(short.message, "ä".repeat(16));
        let odd = ExitRecord {
            message: "x".to_owned() + &"ä".repeat(40),
            ..record(0)
        };
        assert_eq!(
            ExitRecord::decode(&odd.encode()).expect("a record").message,
            "x".to_owned() + &"ä".repeat(15)
        );
    }

    #[test]
    fn a_boot_id_prints_as_the_kernel_prints_it() {
        assert_eq!(record(0).boot_id_text(), "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(parse_boot_id("01234567"), None);
        assert_eq!(parse_boot_id("0123456789abcdef0123456789abcdeg"), None);
    }
}
