//! The hosts to ask for one thing, one after another, and what they said.

use std::time::Duration;

use super::endpoint::Endpoint;
use super::health::{Health, Standing};
use crate::error::{Kind, PullError, Reason};
use crate::reference::{Digest, Reference};

/// How often all hosts are asked for something small, while they only fail in passing.
const ROUNDS: u32 = 3;

/// One walk through the hosts.
pub struct Ways<'a> {
    health: &'a Health,
    reference: &'a Reference,
    endpoints: &'a [Endpoint],
    digest: Option<&'a Digest>,
    /// Those to ask, the next one last.
    left: Vec<usize>,
    /// What came of them, by index.
    failures: Vec<(usize, PullError)>,
}

impl<'a> Ways<'a> {
    /// The hosts for something with this digest, or (without one) for a tag.
    pub fn new(
        health: &'a Health,
        reference: &'a Reference,
        endpoints: &'a [Endpoint],
        digest: Option<&'a Digest>,
    ) -> Ways<'a> {
        let mut ways = Ways {
            health,
            reference,
            endpoints,
            digest,
            left: Vec::with_capacity(endpoints.len()),
            failures: Vec::new(),
        };
        if endpoints.len() == 1 {
            // Nobody else could be asked instead: the keyed pulls see to pauses.
            ways.left.push(0);
            return ways;
        }
        let mut later = Vec::new();
        for (at, endpoint) in endpoints.iter().enumerate() {
            let target = &endpoint.target;
            if !(if digest.is_some() { target.digests } else { target.tags }) {
                continue;
            }
            match health.of(&target.host, digest) {
                Standing::Good => ways.left.push(at),
                Standing::Troubled => later.push(at),
                Standing::Paused(time) => {
                    let why = format!("it asked not to be asked for {} s more", time.as_secs());
                    ways.failures.push((at, PullError::new(Reason::RateLimited, why)));
                }
                Standing::Wrong => {
                    let why = "it had other content under this digest and is not asked for it again";
                    ways.failures.push((at, PullError::new(Reason::WrongDigest, why)));
                }
            }
        }
        ways.left.extend(later);
        ways.left.reverse();
        ways
    }

    /// Whether it stands in for the reference's own host.
    pub fn is_mirror(&self, endpoint: &Endpoint) -> bool {
        self.endpoints.last().is_some_and(|last| !std::ptr::eq(last, endpoint))
    }

    /// The next host to ask.
    pub fn next(&mut self) -> Option<&'a Endpoint> {
        let at = self.left.pop()?;
        self.endpoints.get(at)
    }

    /// It did not give what was wanted.
    pub fn failed(&mut self, endpoint: &Endpoint, error: PullError) {
        let host = &endpoint.target.host;
        if self.endpoints.len() > 1 {
            match (&error.kind, error.reason, self.digest) {
                (
                    Kind::Transient {
                        retry_after: Some(time),
                    },
                    ..,
                ) => self.health.paused(host, *time),
                // The last is asked last anyway.
                _ if !self.is_mirror(endpoint) => {}
                (_, Reason::WrongDigest, Some(digest)) => self.health.wrong(host, digest),
                (_, Reason::Unavailable | Reason::Stalled, _) => self.health.troubled(host),
                _ => {}
            }
            tracing::debug!(host, %error, "asked without success");
        }
        if let Some(at) = self.endpoints.iter().position(|known| std::ptr::eq(known, endpoint)) {
            self.failures.push((at, error));
        }
    }

    /// After all have failed: waits a little if it is worth to ask them again.
    ///
    /// # Errors
    /// It is not.
    pub async fn again(self, round: &mut u32) -> Result<(), PullError> {
        let error = self.error();
        *round += 1;
        let passing = error.reason == Reason::Unavailable && error.kind == (Kind::Transient { retry_after: None });
        if !passing || *round >= ROUNDS {
            return Err(error);
        }
        let pause = Duration::from_millis(200) * *round + Duration::from_millis(rand::random_range(0..200));
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// What all of them together said. The reason is that of the reference's own host; while one of them may yet
    /// change its mind, trying again soon is worth it.
    pub fn error(mut self) -> PullError {
        let name = self.reference.to_string();
        self.failures.sort_by_key(|(at, _)| *at);
        let Some((_, last)) = self.failures.last() else {
            return PullError::new(
                Reason::NotFound,
                format!("{name}: no host may be asked for it; see pull-from-mirror in the registry configuration"),
            );
        };
        if self.endpoints.len() == 1 {
            return last.clone();
        }
        let soon = self.failures.iter().any(|(_, error)| !error.is_terminal());
        let said = self.failures.iter().map(|(at, error)| {
            let host = self.endpoints.get(*at).map_or("", |endpoint| &endpoint.target.host);
            format!("{host}: {}", stripped(&error.message, &name))
        });
        PullError {
            reason: last.reason,
            message: format!("{name}: {}", said.collect::<Vec<_>>().join("; ")),
            kind: if soon {
                // A host's pause is its own: the others may be asked meanwhile.
                Kind::Transient { retry_after: None }
            } else {
                Kind::Terminal
            },
        }
    }
}

/// A message without the reference that it begins with.
fn stripped<'a>(message: &'a str, name: &str) -> &'a str {
    let Some(rest) = message.strip_prefix(name) else {
        return message;
    };
    rest.strip_prefix(": ").unwrap_or(rest.trim_start())
}
