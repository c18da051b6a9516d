//! Level-triggered waits that say what they saw last.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// How often a state is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// What one look saw.
pub enum Seen<T> {
    /// What was waited for.
    Done(T),
    /// Not yet; the text describes the state, for the message when time runs out.
    NotYet(String),
}

/// Looks until `look` is done, at most `limit` long. Errors of `look` count as "not yet".
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Seen<T>>>,
{
    let deadline = Instant::now() + limit;
    let mut last = String::from("nothing");
    loop {
        match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(Seen::Done(value))) => return Ok(value),
            Ok(Ok(Seen::NotYet(state))) => last = state,
            Ok(Err(error)) => last = format!("error: {error:#}"),
            Err(_) => bail!("{what}: not within {limit:?}, and the last look did not end; seen before: {last}"),
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}; last seen: {last}");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Done when `condition` holds for `state`; otherwise not yet, described by its Debug form.
pub fn when<T: Debug>(state: T, condition: impl FnOnce(&T) -> bool) -> Seen<T> {
    if condition(&state) {
        Seen::Done(state)
    } else {
        Seen::NotYet(format!("{state:?}"))
    }
}
