//! Stopping a machine: the guest is asked, and at the deadline its VMM is killed, once.

use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::time::Instant;
use vmlet_init::channel::Request;

use crate::life::End;
use crate::machine::{Machine, instant_of};
use crate::record::Stop;

impl Machine {
    /// Begins a stop, or shortens one. The deadline is recorded: another agent goes on from it.
    pub(super) async fn begin_stop(&mut self, grace: Duration, deleting: bool) {
        // What was never ready has written nothing that a deletion would miss.
        let grace = if deleting && self.record.ready_at.is_none() {
            Duration::ZERO
        } else {
            grace
        };
        let deadline = SystemTime::now() + grace.min(Duration::from_secs(365 * 86400));
        let stop = match self.record.stop {
            // Goals come again and again: only what is shorter by more than a moment is another one.
            Some(stop) if stop.killed || deadline + Duration::from_millis(50) >= stop.deadline => return,
            Some(stop) => Stop { deadline, ..stop },
            None => {
                tracing::info!(
                    uid = self.uid,
                    run = self.record.run,
                    grace = grace.as_secs(),
                    "stopping"
                );
                Stop {
                    deadline,
                    killed: false,
                }
            }
        };
        self.record.stop = Some(stop);
        self.write_record(false);
    }

    /// When the kill is due.
    pub(super) fn kill_at(&self) -> Option<Instant> {
        let stop = self.record.stop.filter(|stop| !stop.killed)?;
        self.process.as_ref()?;
        Some(instant_of(stop.deadline))
    }

    /// Takes a stop that was begun one step further.
    pub(super) async fn advance_stop(&mut self) {
        let Some(stop) = self.record.stop else { return };
        if stop.killed {
            return;
        }
        let left = stop.deadline.duration_since(SystemTime::now()).unwrap_or_default();
        if left.is_zero() {
            self.kill_once(stop);
            return;
        }
        // A guest that boots is asked when it is ready: it would not hear before. One that was ready
        // is asked even if it does not look so now.
        let may_hear = self.guest.ready || self.record.ready_at.is_some();
        if may_hear && !self.guest.stopping && !self.guest.asking && self.guest.ask_again_at.is_none() {
            // The guest's own grace ends before ours, so that it can still sync and say how it ended.
            let grace = left.saturating_sub(Duration::from_secs(2)).max(left / 2);
            self.ask(Request::shutdown(grace.as_secs()));
        }
    }

    fn kill_once(&mut self, stop: Stop) {
        // Recorded first: after a crash in between it counts as sent, and the next agent waits for the end
        // and kills again only because the process still lives.
        self.record.stop = Some(Stop { killed: true, ..stop });
        self.write_record(false);
        self.kill("its grace period is over");
    }

    fn kill(&mut self, why: &str) {
        let Some(process) = &self.process else { return };
        tracing::warn!(uid = self.uid, pid = process.id.pid, "killing the VMM: {why}");
        if let Err(error) = process.kill() {
            let message = format!("its VMM (process {}) cannot be killed: {error}", process.id.pid);
            tracing::error!(uid = self.uid, "{message}");
            self.problem = Some(message);
        }
    }

    /// For guests whose init does not listen to us: what a power button does.
    pub(super) async fn press_power(&mut self) {
        if self.record.stop.is_some() && !std::mem::replace(&mut self.guest.powered, true) {
            self.call("system_powerdown", json!({})).await;
        }
    }

    /// Ends a start that took too long.
    pub(super) async fn kill_too_slow(&mut self, what: String, answered: bool) {
        self.drain_console().await;
        self.kill(&what);
        self.too_slow = Some(End::TooSlow { what, answered });
        if let Some(process) = &self.process {
            process.exited().await;
        }
        self.vmm_ended().await;
    }
}
