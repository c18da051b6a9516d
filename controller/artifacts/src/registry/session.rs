//! How hosts let us in: one session for each host, repository and set of logins, shared by all who ask with them, so
//! that a token is fetched once for its scope and kept until it expires.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

/// Beyond so many sessions those that nobody uses are forgotten.
const MOST: usize = 256;

/// The sessions of this process.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<String, Arc<AsyncMutex<Session>>>>);

/// How one host lets one set of logins in.
#[derive(Default)]
pub struct Session {
    /// Index of the login in use.
    pub login: usize,
    /// What the host asked for last.
    pub challenges: Vec<String>,
    authorization: Option<Authorization>,
}

/// A value for the header of this name; never shown.
#[derive(Clone)]
pub struct Authorization {
    /// The value.
    pub value: String,
    /// When it expires, if it does. By a clock that nobody sets.
    pub until: Option<Instant>,
}

impl Sessions {
    /// The session with this key, which says host, repository and logins.
    pub fn of(&self, key: String) -> Arc<AsyncMutex<Session>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST && !all.contains_key(&key) {
            all.retain(|_, session| Arc::strong_count(session) > 1);
        }
        all.entry(key).or_default().clone()
    }
}

impl Session {
    /// What to send, if it is known and still good.
    pub fn authorization(&self) -> Option<String> {
        let known = self.authorization.as_ref()?;
        let good = known.until.is_none_or(|until| Instant::now() < until);
        good.then(|| known.value.clone())
    }

    /// Takes a new authorization.
    pub fn renew(&mut self, authorization: Authorization) {
        self.authorization = Some(authorization);
    }

    /// Goes on to the next of `count` logins, if there is one.
    pub fn next(&mut self, count: usize) -> bool {
        let more = self.login + 1 < count;
        self.login += usize::from(more);
        more
    }

    /// All logins were refused: the next who asks begins afresh.
    pub fn reset(&mut self) {
        *self = Session::default();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_authorization_is_kept_until_it_expires() {
        let mut session = Session::default();
        assert_eq!(session.authorization(), None);
        session.renew(Authorization {
            value: "Bearer x".into(),
            until: Some(Instant::now() + Duration::from_secs(50)),
        });
        tokio::time::advance(Duration::from_secs(49)).await;
        assert_eq!(session.authorization().as_deref(), Some("Bearer x"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(session.authorization(), None);
    }

    #[test]
    fn sessions_are_shared_by_key_and_forgotten_when_there_are_many() {
        let sessions = Sessions::default();
        let used = sessions.of("used".into());
        for n in 0..2 * MOST {
            sessions.of(n.to_string());
        }
        assert!(Arc::ptr_eq(&used, &sessions.of("used".into())));
        assert!(sessions.0.lock().expect("no panic").len() <= MOST);
    }
}
