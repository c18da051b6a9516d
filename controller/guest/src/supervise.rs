//! How a supervised workload is brought to its end. Pure: no clock, no signals of its own.
//!
//! ```text
//! Running --ended--> Draining --timer--> Killed
//!    |                  |                  |
//!    asked              no children        no children, or timer
//!    v                  v                  v
//! Stopping --ended--> Draining            End
//!    `------ timer (grace is over) ------> Killed
//! ```

use crate::channel::ExitReason;

/// How long what the workload left behind may take to follow SIGTERM (and then SIGKILL), in milliseconds.
pub const DRAIN_MILLISECONDS: u64 = 2000;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The workload itself ended with this code.
    Ended(i32),
    /// No process but PID 1 is left.
    NoChildren,
    /// The host asked for a shutdown.
    Shutdown {
        /// Milliseconds until what still runs is killed.
        grace: u64,
    },
    /// Somebody inside asked for power-off or halt.
    PowerOff,
    /// Somebody inside asked for a reboot.
    Reboot,
    /// The timer that was armed last has run out.
    Timer,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send the workload its stop signal.
    StopWorkload,
    /// Send SIGTERM to every process.
    TermAll,
    /// Send SIGKILL to every process.
    KillAll,
    /// Arm the one timer, in milliseconds from now.
    Arm(u64),
    /// It is over.
    End(End),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Write the record, then power off.
    PowerOff {
        /// For the record.
        reason: ExitReason,
        /// The workload's code, if it ended.
        exit_code: Option<i32>,
    },
    /// Reboot.
    Reboot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Stopping,
    Draining,
    Killed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Ended,
    Host,
    PowerOff,
    Reboot,
}

/// The state of a supervised workload.
#[derive(Debug)]
pub struct Supervisor {
    phase: Phase,
    cause: Cause,
    code: Option<i32>,
    forced: bool,
    grace_inside: u64,
}

impl Supervisor {
    /// A running workload. `grace_inside` (milliseconds) is what it gets when the guest itself asks for its end.
    pub fn new(grace_inside: u64) -> Supervisor {
        Supervisor {
            phase: Phase::Running,
            cause: Cause::Ended,
            code: None,
            forced: false,
            grace_inside,
        }
    }

    /// Whether it has been asked to end.
    pub fn stopping(&self) -> bool {
        self.phase != Phase::Running
    }

    /// Takes what happened, says what to do, in order.
    pub fn on(&mut self, input: Input) -> Vec<Effect> {
        match (self.phase, input) {
            (_, Input::Ended(code)) => {
                self.code = Some(code);
                match self.phase {
                    Phase::Running | Phase::Stopping => {
                        self.phase = Phase::Draining;
                        vec![Effect::TermAll, Effect::Arm(DRAIN_MILLISECONDS)]
                    }
                    Phase::Draining | Phase::Killed => vec![],
                }
            }
            (Phase::Running, Input::Shutdown { grace }) => self.stop(Cause::Host, grace),
            (Phase::Running, Input::PowerOff) => self.stop(Cause::PowerOff, self.grace_inside),
            (Phase::Running, Input::Reboot) => self.stop(Cause::Reboot, self.grace_inside),
            // The host's word wins over an earlier one from inside, and the newest grace counts.
            (Phase::Stopping, Input::Shutdown { grace }) => {
                self.cause = Cause::Host;
                vec![Effect::Arm(grace)]
            }
            (Phase::Draining | Phase::Killed, Input::Shutdown { .. }) if self.cause == Cause::Reboot => {
                self.cause = Cause::Host;
                vec![]
            }
            (Phase::Stopping, Input::Timer) => {
                self.forced = true;
                self.kill()
            }
            (Phase::Draining, Input::Timer) => self.kill(),
            (Phase::Draining | Phase::Killed, Input::NoChildren) | (Phase::Killed, Input::Timer) => {
                vec![Effect::End(self.end())]
            }
            _ => vec![],
        }
    }

    fn stop(&mut self, cause: Cause, grace: u64) -> Vec<Effect> {
        self.cause = cause;
        self.phase = Phase::Stopping;
        vec![Effect::StopWorkload, Effect::Arm(grace)]
    }

    fn kill(&mut self) -> Vec<Effect> {
        self.phase = Phase::Killed;
        vec![Effect::KillAll, Effect::Arm(DRAIN_MILLISECONDS)]
    }

    fn end(&self) -> End {
        let reason = match self.cause {
            Cause::Reboot => return End::Reboot,
            Cause::Ended => ExitReason::Exited,
            Cause::PowerOff => ExitReason::PowerOff,
            Cause::Host if self.forced => ExitReason::ShutdownForced,
            Cause::Host => ExitReason::Shutdown,
        };
        End::PowerOff {
            reason,
            exit_code: self.code,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(inputs: &[Input]) -> Vec<Effect> {
        let mut supervisor = Supervisor::new(30_000);
        inputs.iter().flat_map(|input| supervisor.on(*input)).collect()
    }

    fn end(reason: ExitReason, exit_code: Option<i32>) -> Effect {
        Effect::End(End::PowerOff { reason, exit_code })
    }

    const TERM: [Effect; 2] = [Effect::TermAll, Effect::Arm(DRAIN_MILLISECONDS)];
    const KILL: [Effect; 2] = [Effect::KillAll, Effect::Arm(DRAIN_MILLISECONDS)];

    #[test]
    fn a_workload_that_ends_is_reported_with_its_code() {
        let effects = run(&[Input::Ended(7), Input::NoChildren]);
        assert_eq!(effects, [TERM.as_slice(), &[end(ExitReason::Exited, Some(7))]].concat());
    }

    #[test]
    fn what_it_leaves_behind_is_killed_after_a_while() {
        let effects = run(&[Input::Ended(0), Input::Timer, Input::Timer]);
        assert_eq!(
            effects,
            [TERM.as_slice(), &KILL, &[end(ExitReason::Exited, Some(0))]].concat()
        );
    }

    #[test]
    fn a_shutdown_that_is_followed_in_time_is_graceful() {
        let effects = run(&[Input::Shutdown { grace: 5000 }, Input::Ended(143), Input::NoChildren]);
        let stop = [Effect::StopWorkload, Effect::Arm(5000)];
        assert_eq!(
            effects,
            [stop.as_slice(), &TERM, &[end(ExitReason::Shutdown, Some(143))]].concat()
        );
    }

    #[test]
    fn a_workload_that_ignores_its_signal_is_killed_and_that_is_said() {
        let effects = run(&[
            Input::Shutdown { grace: 5000 },
            Input::Timer,
            Input::Ended(137),
            Input::NoChildren,
        ]);
        let stop = [Effect::StopWorkload, Effect::Arm(5000)];
        assert_eq!(
            effects,
            [stop.as_slice(), &KILL, &[end(ExitReason::ShutdownForced, Some(137))]].concat()
        );
        let stuck = run(&[Input::Shutdown { grace: 0 }, Input::Timer, Input::Timer]);
        assert_eq!(stuck.last(), Some(&end(ExitReason::ShutdownForced, None)));
    }

    #[test]
    fn the_newest_grace_counts() {
        let effects = run(&[Input::Shutdown { grace: 60_000 }, Input::Shutdown { grace: 1000 }]);
        assert_eq!(effects.last(), Some(&Effect::Arm(1000)));
    }

    #[test]
    fn inside_the_guest_power_off_and_reboot_are_asked_for() {
        assert_eq!(
            run(&[Input::PowerOff, Input::Ended(0), Input::NoChildren]).last(),
            Some(&end(ExitReason::PowerOff, Some(0)))
        );
        assert_eq!(
            run(&[Input::Reboot, Input::Ended(0), Input::NoChildren]).last(),
            Some(&Effect::End(End::Reboot))
        );
        let stopped = run(&[
            Input::Reboot,
            Input::Shutdown { grace: 1 },
            Input::Ended(0),
            Input::NoChildren,
        ]);
        assert_eq!(stopped.last(), Some(&end(ExitReason::Shutdown, Some(0))));
    }

    #[test]
    fn orphans_that_come_and_go_end_nothing() {
        assert_eq!(run(&[Input::NoChildren, Input::Timer]), []);
    }
}
