//! Stopping a machine: the guest is asked, and at the deadline its VMM is killed, once.

use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::time::Instant;
use vmlet_init::channel::Request;

use crate::crash::crash_point;
use crate::life::End;
use crate::machine::{Machine, instant_of};
use crate::record::Stop;

/// How long after the grace period the VMM is killed: what ran in the guest has had all of the period by then, and
/// the guest needs a moment to kill what is left, to sync and to power off. A VMM that cannot be talked to gets
/// SIGTERM when this begins.
const AFTERWARDS: Duration = Duration::from_secs(3);

impl Machine {
    /// Begins a stop, or shortens one. The deadline is recorded: another agent goes on from it.
    pub(super) fn begin_stop(&mut self, grace: Duration, deleting: bool) {
        if self.process.is_none() || self.run_is_over() {
            return;
        }
        // What was never ready has written nothing that a deletion would miss.
        let grace = if deleting && self.record.ready_at.is_none() {
            Duration::ZERO
        } else {
            grace.min(Duration::from_secs(365 * 86400))
        };
        let deadline = SystemTime::now() + grace + afterwards(grace);
        let stop = match self.record.stop {
            // Goals come again and again: only what is shorter by more than a moment is another one.
            Some(stop) if stop.killed || deadline + Duration::from_millis(50) >= stop.deadline => return,
            Some(stop) => Stop {
                deadline,
                grace,
                ..stop
            },
            None => {
                tracing::info!(
                    uid = self.uid,
                    run = self.record.run,
                    grace = grace.as_secs(),
                    "stopping"
                );
                Stop {
                    deadline,
                    grace,
                    followed: false,
                    terminated: false,
                    killed: false,
                }
            }
        };
        self.record.stop = Some(stop);
        self.write_record();
        crash_point("stop-begun");
    }

    /// When the kill is due.
    pub(super) fn kill_at(&self) -> Option<Instant> {
        let stop = self.record.stop.filter(|_| !self.kill_sent && !self.run_is_over())?;
        self.process.as_ref()?;
        Some(instant_of(stop.deadline))
    }

    /// When a VMM that does not talk to us gets SIGTERM: it writes out what it holds and ends. The guest
    /// has had its grace period by then.
    pub(super) fn terminate_at(&self) -> Option<Instant> {
        let stop = self.record.stop.filter(|stop| !stop.terminated)?;
        self.link.trouble()?;
        self.kill_at()?;
        Some(instant_of(stop.deadline - afterwards(stop.grace)))
    }

    /// Takes a stop that was begun one step further.
    pub(super) fn advance_stop(&mut self) {
        let Some(stop) = self.record.stop.filter(|_| self.process.is_some()) else {
            return;
        };
        self.kill_when_due();
        if self.kill_sent || self.run_is_over() {
            return;
        }
        // A guest that boots is asked when it is ready: it would not hear before. One that was ready
        // is asked even if it does not look so now.
        let may_hear = self.guest.ready || self.record.ready_at.is_some();
        if may_hear && !self.guest.stopping && !self.guest.asking && self.guest.ask_again_at.is_none() {
            let left = stop.deadline.duration_since(SystemTime::now()).unwrap_or_default();
            self.ask(Request::shutdown(guests_part(left, stop.grace)));
        }
    }

    /// Sends the one kill when its time has come. A kill that was recorded by an agent that then died was
    /// perhaps not sent: what lives although its kill is recorded is killed by the next agent, once.
    pub(super) fn kill_when_due(&mut self) {
        let Some(stop) = self.record.stop.filter(|_| self.process.is_some()) else {
            return;
        };
        let due = stop.killed || stop.deadline <= SystemTime::now();
        if !due || self.kill_sent || self.run_is_over() {
            return;
        }
        if !stop.killed {
            // Recorded first: an agent that finds the VMM gone then knows why.
            self.record.stop = Some(Stop { killed: true, ..stop });
            self.write_record();
            crash_point("stop-kill-recorded");
        }
        self.kill("its grace period is over");
        crash_point("stop-killed");
    }

    pub(super) fn terminate_when_due(&mut self) {
        if self.terminate_at().is_none_or(|at| at > Instant::now()) {
            return;
        }
        let (Some(stop), Some(process)) = (self.record.stop, &self.process) else {
            return;
        };
        tracing::warn!(
            uid = self.uid,
            pid = process.id.pid,
            "the VMM cannot be talked to: SIGTERM"
        );
        if let Err(error) = process.terminate() {
            tracing::warn!(uid = self.uid, %error, "SIGTERM");
        }
        self.record.stop = Some(Stop {
            terminated: true,
            ..stop
        });
        self.write_record();
    }

    /// Kills the VMM, once.
    pub(super) fn kill(&mut self, why: &str) {
        let Some(process) = self.process.as_ref().filter(|_| !self.kill_sent) else {
            return;
        };
        tracing::warn!(uid = self.uid, pid = process.id.pid, "killing the VMM: {why}");
        self.kill_sent = true;
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

    /// Ends a start that took too long. Its end is seen as every VMM's is.
    pub(super) async fn kill_too_slow(&mut self, what: String, answered: bool) {
        self.drain_console().await;
        if self.process.is_some() {
            self.kill(&what);
            self.too_slow = Some(End::TooSlow { what, answered });
        }
    }
}

/// The time after a grace period. Without a period the kill is meant to come at once.
fn afterwards(grace: Duration) -> Duration {
    if grace.is_zero() { Duration::ZERO } else { AFTERWARDS }
}

/// The seconds of its grace period that a guest still has, with `left` until the kill. Rounded up: an ask is never
/// there at the very beginning, and nobody is to lose a second by that.
fn guests_part(left: Duration, grace: Duration) -> u64 {
    let left = left.saturating_sub(afterwards(grace));
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_of_all_of_its_grace_period_and_the_kill_comes_after_it() {
        let moment = Duration::from_millis(20);
        for seconds in [1, 2, 3, 30] {
            let grace = Duration::from_secs(seconds);
            let left = grace + afterwards(grace) - moment;
            assert_eq!(guests_part(left, grace), seconds);
        }
        let (left, grace) = (Duration::from_secs(4), Duration::from_secs(10));
        assert_eq!(guests_part(left, grace), 1, "what is left when the ask comes late");
        assert_eq!(guests_part(AFTERWARDS / 2, grace), 0);
    }

    #[test]
    fn no_grace_is_a_kill_at_once() {
        assert_eq!(afterwards(Duration::ZERO), Duration::ZERO);
    }
}
