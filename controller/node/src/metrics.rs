//! What the agent counts, in the OpenMetrics text format.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Instant, SystemTime};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The agent's metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    duration: Histogram,
    failures: Counter,
    starts: Counter,
    foreign: Counter,
    running: Gauge<i64, std::sync::atomic::AtomicI64>,
    /// Seconds since 1970; 0 before the first.
    heartbeat: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("vmlet");
        let duration = Histogram::new(exponential_buckets(0.0005, 2.0, 14));
        let failures = Counter::<u64, AtomicU64>::default();
        let starts = Counter::<u64, AtomicU64>::default();
        let foreign = Counter::<u64, AtomicU64>::default();
        let running = Gauge::default();
        registry.register(
            "reconcile_duration_seconds",
            "Duration of one visit to one virtual machine",
            duration.clone(),
        );
        registry.register(
            "reconcile_failures",
            "Visits that failed and are tried again",
            failures.clone(),
        );
        registry.register("machine_starts", "Starts of virtual machines", starts.clone());
        registry.register(
            "foreign_statuses",
            "Statuses of virtual machines that somebody else wrote and that were put right",
            foreign.clone(),
        );
        registry.register(
            "machines_running",
            "Virtual machines that run on this node",
            running.clone(),
        );
        let heartbeat = Gauge::default();
        registry.register(
            "heartbeat_timestamp_seconds",
            "When the API last accepted this node's heartbeat, in seconds since 1970",
            heartbeat.clone(),
        );
        Self {
            registry: Arc::new(registry),
            duration,
            failures,
            starts,
            foreign,
            running,
            heartbeat,
        }
    }
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// Records the duration of a visit when dropped, so that early returns count.
pub struct Timer {
    start: Instant,
    duration: Histogram,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.duration.observe(self.start.elapsed().as_secs_f64());
    }
}

impl Metrics {
    pub(crate) fn reconcile_timer(&self) -> Timer {
        Timer {
            start: Instant::now(),
            duration: self.duration.clone(),
        }
    }

    pub(crate) fn reconcile_failed(&self) {
        self.failures.inc();
    }

    pub(crate) fn started(&self) {
        self.starts.inc();
    }

    pub(crate) fn foreign_status(&self) {
        self.foreign.inc();
    }

    pub(crate) fn set_running(&self, count: i64) {
        self.running.set(count);
    }

    pub(crate) fn heartbeat_written(&self) {
        self.heartbeat.set(now());
    }

    /// Why this node may count as lost: its heartbeat is missing or too old. None: it is fresh.
    pub fn heartbeat_problem(&self) -> Option<String> {
        let last = self.heartbeat.get();
        let age = now() - last;
        if last == 0.0 {
            Some("none has been written yet".to_owned())
        } else if age > crate::vmnode::LOST.as_secs_f64() {
            Some(format!("the last one was written {age:.0} s ago; the log says why"))
        } else {
            None
        }
    }

    /// All metrics as text, for `/metrics`.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_whose_heartbeat_is_old_or_missing_says_so() {
        let metrics = Metrics::default();
        assert!(metrics.heartbeat_problem().is_some_and(|why| why.contains("none")));
        metrics.heartbeat_written();
        assert_eq!(metrics.heartbeat_problem(), None);
        metrics.heartbeat.set(now() - 100.0);
        assert!(metrics.heartbeat_problem().is_some_and(|why| why.contains("100 s ago")));
    }
}
