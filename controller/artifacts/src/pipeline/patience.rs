//! How long a command waits for a registry that asks for time. Pure.

use std::time::Duration;

use crate::error::{Kind, PullError, Reason};

/// In all.
const MOST: Duration = Duration::from_secs(120);
/// Without a word of the registry about it, the first time; then twice as long each time.
const FIRST: Duration = Duration::from_secs(1);

/// What is left of it.
pub struct Patience {
    left: Duration,
    next: Duration,
}

impl Patience {
    /// All of it.
    pub fn new() -> Patience {
        Patience {
            left: MOST,
            next: FIRST,
        }
    }

    /// For how long to wait before the next try.
    ///
    /// # Errors
    /// The given one: waiting does not help, or it would take too long (that is added).
    pub fn wait(&mut self, error: PullError) -> Result<Duration, PullError> {
        let pause = match error.kind {
            // A second at least: "0" would be a busy loop.
            Kind::Transient {
                retry_after: Some(said),
            } => said.max(FIRST),
            Kind::Transient { retry_after: None } if error.reason == Reason::RateLimited => self.next,
            // Whatever else passes has been tried a few times already.
            _ => return Err(error),
        };
        let Some(left) = self.left.checked_sub(pause) else {
            let (pause, left) = (pause.as_secs(), self.left.as_secs());
            let message = format!(
                "{}; it asks for {pause} s, and only {left} s more would be waited for",
                error.message
            );
            return Err(PullError { message, ..error });
        };
        (self.left, self.next) = (left, self.next * 2);
        Ok(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(after: Option<u64>) -> PullError {
        let after = after.map(Duration::from_secs);
        after.map_or_else(
            || PullError::new(Reason::RateLimited, "429"),
            |after| PullError::retry_after(Reason::Unavailable, "503", after),
        )
    }

    fn waits(patience: &mut Patience, after: Option<u64>) -> Option<u64> {
        patience.wait(limited(after)).ok().map(|pause| pause.as_secs())
    }

    #[test]
    fn what_the_registry_says_is_waited_for_two_minutes_in_all() {
        let mut patience = Patience::new();
        assert_eq!(waits(&mut patience, Some(100)), Some(100));
        let error = patience.wait(limited(Some(21))).expect_err("too long");
        assert_eq!(
            error.message,
            "503; it asks for 21 s, and only 20 s more would be waited for"
        );
        assert_eq!(waits(&mut patience, Some(u64::MAX)), None);
        assert_eq!(waits(&mut patience, Some(19)), Some(19));
        assert_eq!(waits(&mut patience, Some(0)), Some(1), "no busy loop");
        assert_eq!(waits(&mut patience, Some(0)), None);
    }

    #[test]
    fn a_registry_that_says_nothing_is_asked_after_longer_and_longer_pauses() {
        let mut patience = Patience::new();
        let pauses: Vec<u64> = std::iter::from_fn(|| waits(&mut patience, None)).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32]);
    }

    #[test]
    fn other_errors_are_not_waited_for() {
        for reason in [
            Reason::Unavailable,
            Reason::NotFound,
            Reason::Unauthorized,
            Reason::NoSpace,
        ] {
            let error = PullError::new(reason, "no");
            assert_eq!(Patience::new().wait(error.clone()), Err(error));
        }
    }
}
