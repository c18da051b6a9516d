//! Which unused artefacts go, and when. Pure: the clock and the disk are the caller's.
//!
//! As the kubelet collects images: nothing while the disk has room; above a high mark, what nobody has
//! used for longest goes first, until usage is at the low mark. Nothing younger than a minimum age goes:
//! somebody may be about to use it.

use std::time::{Duration, SystemTime};

use super::Id;
use crate::types::Cached;

/// When unused artefacts are removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Nothing is removed that was used more recently.
    pub min_age: Duration,
    /// What was not used for this long goes even where there is room; `None`: it stays.
    pub max_age: Option<Duration>,
    /// Above this part of the disk in use, in percent, room is made.
    pub high_percent: u8,
    /// Room is made until not more than this is in use, in percent.
    pub low_percent: u8,
}

impl Default for Policy {
    /// The kubelet's: two minutes, no maximum age, 85 % and 80 %.
    fn default() -> Self {
        Policy {
            min_age: Duration::from_secs(120),
            max_age: None,
            high_percent: 85,
            low_percent: 80,
        }
    }
}

/// The file system that the store is on, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What may still be written.
    pub free: u64,
}

impl Policy {
    /// Bytes to be freed now; 0 while there is room.
    pub fn wanted(&self, space: Space) -> u64 {
        let mark = |percent: u8| u128::from(space.total) * u128::from(percent.min(100)) / 100;
        let used = u128::from(space.total.saturating_sub(space.free));
        if used <= mark(self.high_percent) {
            return 0;
        }
        u64::try_from(used - mark(self.low_percent).min(used)).unwrap_or(u64::MAX)
    }

    /// What to remove, in this order, to free `wanted` bytes; and what is too old.
    pub fn choose(&self, cached: &[Cached], wanted: u64, now: SystemTime) -> Vec<Id> {
        // A time in the future (the clock was set back) counts as now.
        let age = |c: &Cached| now.duration_since(c.last_used).unwrap_or_default();
        let mut unused: Vec<&Cached> = cached
            .iter()
            .filter(|c| c.users.is_empty() || cfg!(feature = "bug-global-prune"))
            .filter(|c| age(c) >= self.min_age)
            .collect();
        unused.sort_by(|a, b| (a.last_used, a.kind, &a.id).cmp(&(b.last_used, b.kind, &b.id)));
        let mut freed = 0u64;
        let mut chosen = Vec::new();
        for c in unused {
            if freed >= wanted && self.max_age.is_none_or(|most| age(c) <= most) {
                continue;
            }
            freed = freed.saturating_add(c.allocated_bytes);
            chosen.push((c.kind, c.id.clone()));
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ArtefactKind, Interest};

    const MIB: u64 = 1 << 20;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn cached(id: &str, mib: u64, age: u64, used: bool) -> Cached {
        Cached {
            kind: ArtefactKind::Image,
            id: id.into(),
            digest: String::new(),
            source: String::new(),
            allocated_bytes: mib * MIB,
            users: if used { vec![Interest("vm".into())] } else { Vec::new() },
            last_used: now() - Duration::from_secs(age),
        }
    }

    fn chosen(policy: &Policy, all: &[Cached], used_percent: u64) -> Vec<String> {
        let space = Space {
            total: 1000 * MIB,
            free: (100 - used_percent) * 10 * MIB,
        };
        let ids = policy.choose(all, policy.wanted(space), now());
        ids.into_iter().map(|(_, id)| id).collect()
    }

    #[test]
    fn nothing_goes_while_there_is_room() {
        let all = [cached("old", 100, 1_000_000, false)];
        assert!(chosen(&Policy::default(), &all, 85).is_empty());
        assert_eq!(chosen(&Policy::default(), &all, 86), ["old"]);
    }

    #[test]
    fn the_longest_unused_go_first_and_only_as_many_as_are_needed() {
        let all = [
            cached("c", 30, 300, false),
            cached("a", 40, 900, false),
            cached("b", 40, 600, false),
        ];
        // 88 % is 80 MiB above the low mark.
        assert_eq!(chosen(&Policy::default(), &all, 88), ["a", "b"]);
        assert_eq!(chosen(&Policy::default(), &all, 89), ["a", "b", "c"]);
        assert_eq!(chosen(&Policy::default(), &all, 100), ["a", "b", "c"]);
    }

    #[test]
    fn what_is_used_or_was_just_now_stays_even_on_a_full_disk() {
        let mut future = cached("future", 100, 0, false);
        future.last_used = now() + Duration::from_secs(3600);
        let all = [
            cached("used", 100, 1_000_000, true),
            cached("young", 100, 119, false),
            cached("just", 100, 120, false),
            future,
        ];
        assert_eq!(chosen(&Policy::default(), &all, 100), ["just"]);
    }

    #[test]
    fn what_is_older_than_the_maximum_goes_also_where_there_is_room() {
        let policy = Policy {
            max_age: Some(Duration::from_secs(1000)),
            ..Policy::default()
        };
        let all = [
            cached("older", 10, 1001, false),
            cached("old", 10, 1000, false),
            cached("used", 10, 9999, true),
        ];
        assert_eq!(chosen(&policy, &all, 10), ["older"]);
    }

    #[test]
    fn marks_without_sense_free_nothing_or_everything_and_never_overflow() {
        let space = Space {
            total: u64::MAX,
            free: 0,
        };
        let policy = |high, low| Policy {
            high_percent: high,
            low_percent: low,
            ..Policy::default()
        };
        assert_eq!(policy(100, 0).wanted(space), 0);
        assert_eq!(policy(0, 0).wanted(space), u64::MAX);
        assert_eq!(policy(50, 90).wanted(Space { total: 100, free: 30 }), 0);
        assert_eq!(policy(85, 80).wanted(Space { total: 0, free: 0 }), 0);
        assert_eq!(policy(85, 80).wanted(Space { total: 10, free: 20 }), 0);
    }
}
