//! What is remembered of hosts that are asked beside others, for as long as the process lives.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::reference::Digest;

/// For so long a host that failed is asked after all others.
const TROUBLE: Duration = Duration::from_secs(30);
/// The longest Retry-After that is believed.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// So many wrong contents are remembered.
const MOST: usize = 4096;

/// The memory. Cheap to clone.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    pauses: HashMap<String, Instant>,
    troubles: HashMap<String, Instant>,
    wrong: HashSet<(String, Digest)>,
}

/// Whether a host is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In its place.
    Good,
    /// After all others.
    Troubled,
    /// Not before this time has passed: it said so.
    Paused(Duration),
    /// Not for this digest: it had something else under it.
    Wrong,
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a host stands, when something with this digest is wanted.
    pub fn of(&self, host: &str, digest: Option<&Digest>) -> Standing {
        let now = Instant::now();
        let state = self.state();
        let left = |all: &HashMap<String, Instant>| {
            let until = all.get(host)?;
            Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
        };
        if digest.is_some_and(|digest| state.wrong.contains(&(host.to_owned(), digest.clone()))) {
            return Standing::Wrong;
        }
        match (left(&state.pauses), left(&state.troubles)) {
            (Some(left), _) => Standing::Paused(left),
            (None, Some(_)) => Standing::Troubled,
            (None, None) => Standing::Good,
        }
    }

    /// It asked to be left alone for a time.
    pub fn paused(&self, host: &str, time: Duration) {
        let until = Instant::now() + time.min(LONGEST_PAUSE);
        self.state().pauses.insert(host.to_owned(), until);
    }

    /// It did not answer, or broke off.
    pub fn troubled(&self, host: &str) {
        self.state().troubles.insert(host.to_owned(), Instant::now() + TROUBLE);
    }

    /// It had other content under this digest.
    pub fn wrong(&self, host: &str, digest: &Digest) {
        let mut state = self.state();
        if state.wrong.len() >= MOST {
            state.wrong.clear();
        }
        state.wrong.insert((host.to_owned(), digest.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_of_a_host_passes_but_for_wrong_content() {
        let health = Health::default();
        let digest = Digest::sha256(b"x");
        assert_eq!(health.of("m", Some(&digest)), Standing::Good);
        health.troubled("m");
        assert_eq!(health.of("m", None), Standing::Troubled);
        health.paused("m", Duration::from_secs(40));
        assert_eq!(health.of("m", None), Standing::Paused(Duration::from_secs(40)));
        tokio::time::advance(Duration::from_secs(41)).await;
        assert_eq!(health.of("m", Some(&digest)), Standing::Good);
        health.wrong("m", &digest);
        health.paused("n", Duration::from_secs(u64::MAX));
        tokio::time::advance(Duration::from_secs(3601)).await;
        assert_eq!(health.of("m", Some(&digest)), Standing::Wrong);
        assert_eq!(health.of("m", Some(&Digest::sha256(b"y"))), Standing::Good);
        assert_eq!(health.of("n", None), Standing::Good, "an hour is the most");
    }
}
