//! What the agent counts, in the OpenMetrics text format.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

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
    running: Gauge<i64, std::sync::atomic::AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("vmlet");
        let duration = Histogram::new(exponential_buckets(0.0005, 2.0, 14));
        let failures = Counter::<u64, AtomicU64>::default();
        let starts = Counter::<u64, AtomicU64>::default();
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
            "machines_running",
            "Virtual machines that run on this node",
            running.clone(),
        );
        Self {
            registry: Arc::new(registry),
            duration,
            failures,
            starts,
            running,
        }
    }
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

    pub(crate) fn set_running(&self, count: i64) {
        self.running.set(count);
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
