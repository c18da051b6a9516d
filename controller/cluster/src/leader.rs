//! One controller at a time, by a Lease (coordination.k8s.io), as client-go elects leaders: a holder renews;
//! another one takes over when it has seen the lease unchanged for its whole duration by its own clock,
//! so that clocks need not agree.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Name of the Lease.
pub const LEASE: &str = "vmlet-controller";
/// Without a renewal for this long, another one takes over.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long stops: before another one may begin.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks.
const RETRY: Duration = Duration::from_secs(2);

/// The leader lost its lease, and must not go on.
#[derive(Debug, thiserror::Error)]
#[error(
    "the lease {LEASE} was lost to {0}: this controller stops, so that there is never a second one; start it again"
)]
pub struct Lost(String);

/// What to do next.
#[derive(Debug, PartialEq)]
enum Step {
    /// There is none: make one.
    Create(LeaseSpec),
    /// It is ours, or free: write this.
    Replace(LeaseSpec),
    /// Somebody else holds it.
    Wait {
        /// Who.
        holder: String,
    },
}

/// What a candidate remembers. Pure: time is told to it.
struct Candidate {
    identity: String,
    /// The lease as it was when it last changed, and when that was seen.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    fn step(&mut self, lease: Option<&LeaseSpec>, at: MicroTime, now: Instant) -> Step {
        let mine = |transitions, acquired| LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            acquire_time: Some(acquired),
            renew_time: Some(at.clone()),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        let Some(lease) = lease else {
            return Step::Create(mine(0, at.clone()));
        };
        let holder = lease.holder_identity.clone().unwrap_or_default();
        let transitions = lease.lease_transitions.unwrap_or(0);
        if holder == self.identity {
            let since = lease.acquire_time.clone().unwrap_or_else(|| at.clone());
            return Step::Replace(mine(transitions, since));
        }
        if self.seen.as_ref().is_none_or(|(before, _)| before != lease) {
            self.seen = Some((lease.clone(), now));
        }
        let asked = u64::try_from(lease.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
        let quiet = self
            .seen
            .as_ref()
            .map_or(Duration::ZERO, |(_, since)| now.duration_since(*since));
        if holder.is_empty() || quiet >= Duration::from_secs(asked) {
            return Step::Replace(mine(transitions.saturating_add(1), at.clone()));
        }
        Step::Wait { holder }
    }
}

/// A lease that is held.
pub struct Leadership {
    api: Api<Lease>,
    candidate: Candidate,
}

/// Waits until this process is the leader. None: shut down meanwhile.
pub async fn acquire(
    client: Client,
    namespace: &str,
    identity: String,
    shutdown: &CancellationToken,
) -> Option<Leadership> {
    let mut leadership = Leadership {
        api: Api::namespaced(client, namespace),
        candidate: Candidate { identity, seen: None },
    };
    let mut told = String::new();
    loop {
        match leadership.attempt().await {
            Ok(None) => {
                tracing::info!(
                    identity = leadership.candidate.identity,
                    "this controller is the leader"
                );
                return Some(leadership);
            }
            Ok(Some(holder)) if holder != told => {
                tracing::info!(holder, "another controller is the leader; waiting");
                told = holder;
            }
            Ok(Some(_)) => {}
            Err(error) => tracing::warn!(
                error = vmlet_crds::in_words(&error),
                "the lease cannot be looked at; tried again"
            ),
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

impl Leadership {
    /// One try. None: it is ours now; otherwise who holds it.
    async fn attempt(&mut self) -> kube::Result<Option<String>> {
        let found = self.api.get_opt(LEASE).await?;
        let at = MicroTime(jiff::Timestamp::now());
        let step = self
            .candidate
            .step(found.as_ref().and_then(|l| l.spec.as_ref()), at, Instant::now());
        let written = match step {
            Step::Wait { holder } => return Ok(Some(holder)),
            Step::Create(spec) if found.is_none() => {
                let mut lease = Lease {
                    spec: Some(spec),
                    ..Lease::default()
                };
                lease.metadata.name = Some(LEASE.to_owned());
                self.api.create(&PostParams::default(), &lease).await
            }
            Step::Create(spec) | Step::Replace(spec) => {
                // Its resourceVersion goes along: whoever was faster has it.
                let mut lease = found.unwrap_or_default();
                lease.metadata.managed_fields = None;
                lease.spec = Some(spec);
                self.api.replace(LEASE, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Ok(Some("another controller".to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// Renews until `shutdown`, then lets go, so that the next one need not wait.
    ///
    /// # Errors
    /// When it is lost: whatever the leader does must stop at once.
    pub async fn hold(mut self, shutdown: CancellationToken) -> Result<(), Lost> {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.release().await;
                    return Ok(());
                }
                () = tokio::time::sleep(RETRY) => {}
            }
            let left = DEADLINE.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(None)) => renewed = Instant::now(),
                Ok(Ok(Some(holder))) => return Err(Lost(holder)),
                Ok(Err(error)) => tracing::warn!(
                    error = vmlet_crds::in_words(&error),
                    "the lease was not renewed; tried again"
                ),
                Err(_) => {}
            }
            if renewed.elapsed() >= DEADLINE {
                return Err(Lost("nobody yet: the API does not answer".to_owned()));
            }
        }
    }

    async fn release(&self) {
        let Ok(Some(mut lease)) = self.api.get_opt(LEASE).await else {
            return;
        };
        let Some(spec) = lease
            .spec
            .as_mut()
            .filter(|s| s.holder_identity.as_ref() == Some(&self.candidate.identity))
        else {
            return;
        };
        spec.holder_identity = None;
        lease.metadata.managed_fields = None;
        if let Err(error) = self
            .api
            .replace(&lease.name_any(), &PostParams::default(), &lease)
            .await
        {
            tracing::debug!(
                error = vmlet_crds::in_words(&error),
                "the lease was not given back; it runs out by itself"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::FakeApi;

    const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/vmlet-controller";

    async fn run_to_leadership(api: &FakeApi, who: &str) -> Leadership {
        acquire(api.client(), "ns", who.to_owned(), &CancellationToken::new())
            .await
            .expect("not shut down")
    }

    fn holder(api: &FakeApi) -> String {
        let lease = api.get(PATH).expect("there");
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_controller_waits_until_the_first_gives_back() {
        let api = FakeApi::default();
        let first = run_to_leadership(&api, "a").await;
        assert_eq!(holder(&api), "a");
        let stop = CancellationToken::new();
        let holding = tokio::spawn(first.hold(stop.clone()));
        let second = tokio::spawn({
            let api = api.clone();
            async move { run_to_leadership(&api, "b").await }
        });
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(!second.is_finished(), "renewed, it stays with the first");
        stop.cancel();
        holding.await.expect("joins").expect("gave it back");
        second.await.expect("joins");
        assert_eq!(holder(&api), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_leader_is_followed_after_its_lease_and_a_living_one_that_lost_it_stops() {
        let api = FakeApi::default();
        let first = run_to_leadership(&api, "a").await;
        let start = Instant::now();
        let _second = run_to_leadership(&api, "b").await;
        assert!(start.elapsed() >= DURATION, "{:?}", start.elapsed());
        let lost = first.hold(CancellationToken::new()).await.expect_err("lost");
        assert!(lost.to_string().contains("lost to b"), "{lost}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_cannot_renew_stops_before_another_one_may_begin() {
        let api = FakeApi::default();
        let first = run_to_leadership(&api, "a").await;
        let start = Instant::now();
        api.always(Some(crate::fake_api::failure(
            http::StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            "x",
        )));
        first.hold(CancellationToken::new()).await.expect_err("lost");
        assert!(start.elapsed() < DURATION, "{:?}", start.elapsed());
    }
}
