//! The time of the next try, in the message of a condition.

use std::time::SystemTime;

/// What stands between what went wrong and when it is tried again.
const AGAIN: &str = "; tried again at ";

/// A message with the time (UTC) at which is tried again what it tells of.
pub fn with_next_try(message: &str, at: SystemTime) -> String {
    let at = jiff::Timestamp::try_from(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{message}{AGAIN}{}", at.strftime("%H:%M:%SZ"))
}

/// The message alone: the same for each of many tries.
pub fn without_next_try(message: &str) -> &str {
    message.rsplit_once(AGAIN).map_or(message, |(alone, _)| alone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_time_of_the_next_try_can_be_taken_away_again() {
        let message = "r/i:1: connection refused; check the server";
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(3661);
        let told = with_next_try(message, at);
        assert_eq!(told, format!("{message}; tried again at 01:01:01Z"));
        assert_eq!(without_next_try(&told), message);
        assert_eq!(without_next_try(message), message);
    }
}
