//! Decisions about a machine's life. Pure: evidence in, verdict out.

use vmlet_init::channel::{ExitReason, ExitRecord};

use crate::observation::TerminationReason;
use crate::record::Stop;

/// The longest message of a guest that is passed on, in characters.
const MESSAGE: usize = 500;

/// QEMU's own view of its guest (`query-status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmStatus {
    /// It runs.
    Running,
    /// It ended: power-off, or a reset that was to end it.
    Shutdown,
    /// Its kernel panicked. Must never be continued.
    Panicked,
    /// Stopped: the host has no space for what it writes.
    IoError,
    /// Stopped for another reason, by somebody else.
    Paused,
    /// The accelerator gave up.
    InternalError,
}

impl VmStatus {
    /// From QEMU's word. Words not known here mean that it is not running, and no more.
    pub fn parse(word: &str) -> VmStatus {
        match word {
            "running" => VmStatus::Running,
            "shutdown" => VmStatus::Shutdown,
            "guest-panicked" => VmStatus::Panicked,
            "io-error" => VmStatus::IoError,
            "internal-error" => VmStatus::InternalError,
            _ => VmStatus::Paused,
        }
    }
}

/// How a run was seen to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered off, or was reset before it was ready: QEMU shows both as `shutdown`.
    Shutdown {
        /// A reset was seen, or there is reason to think so.
        reset: bool,
    },
    /// The guest's kernel panicked.
    Panicked,
    /// The accelerator gave up.
    InternalError,
    /// The VMM is gone.
    Gone {
        /// Its exit status, if it was this agent's child: `exit status: 1`.
        status: Option<String>,
        /// The last lines it printed.
        output: String,
        /// Whether the kernel killed it for want of memory.
        out_of_memory: bool,
        /// Whether it ever answered on its monitor.
        answered: bool,
    },
    /// Killed here: the start took too long.
    TooSlow {
        /// What did not happen in time, for people.
        what: String,
        /// Whether the VMM itself answered: then it is the guest's fault.
        answered: bool,
    },
    /// The host was restarted.
    HostReboot,
}

/// All that a verdict is made of.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// How it was seen to end.
    pub end: End,
    /// What the guest wrote before it ended.
    pub record: Option<&'a ExitRecord>,
    /// Whether the guest was ever ready in this run.
    pub was_ready: bool,
    /// A stop that was under way.
    pub stop: Option<Stop>,
}

/// Reason, exit code and message of a termination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why, in a word.
    pub reason: TerminationReason,
    /// Exit status of the workload.
    pub exit_code: Option<i32>,
    /// Why, for people.
    pub message: String,
}

/// Says how a run ended.
pub fn verdict(evidence: &Evidence<'_>) -> Verdict {
    use TerminationReason as R;
    let say = |reason, message: String| Verdict {
        reason,
        exit_code: None,
        message,
    };
    if evidence.stop.is_some_and(|stop| stop.killed) {
        return say(
            R::ForcedKill,
            "it did not stop within its grace period and was killed; what it had not synced may be lost".into(),
        );
    }
    match &evidence.end {
        End::HostReboot => say(R::HostReboot, "the host was restarted".into()),
        End::Panicked => say(
            R::GuestPanic,
            "the guest's kernel panicked; the console log says why".into(),
        ),
        End::InternalError => say(R::VmmDied, "the accelerator gave up (internal error of KVM)".into()),
        End::TooSlow { what, answered: true } => say(R::BootFailed, what.clone()),
        End::TooSlow { what, answered: false } => say(R::StartFailed, what.clone()),
        End::Gone { out_of_memory: true, .. } => say(
            R::OOMKilled,
            "the kernel killed the VMM for want of memory; give the machine or the host more".into(),
        ),
        End::Gone { .. } if evidence.stop.is_some_and(|stop| stop.terminated && stop.followed) => say(
            R::Stopped,
            "it was stopping as asked; its VMM could not be talked to and was ended by SIGTERM".into(),
        ),
        End::Gone { .. } if evidence.stop.is_some_and(|stop| stop.terminated) => say(
            R::ForcedKill,
            "neither its guest nor its VMM could be talked to, and it was ended by SIGTERM; what the guest had not synced is lost".into(),
        ),
        End::Gone { status, output, answered, .. } => {
            let status = status.as_ref().map_or(String::new(), |s| format!(" ({s})"));
            let output = if output.is_empty() { String::new() } else { format!(": {output}") };
            if *answered || evidence.was_ready {
                say(R::VmmDied, format!("the VMM ended under its guest{status}{output}"))
            } else {
                say(R::StartFailed, format!("the VMM did not start{status}{output}"))
            }
        }
        End::Shutdown { reset } => match evidence.record {
            Some(record) => by_record(record, evidence.stop.is_some()),
            None if evidence.stop.is_some() => say(R::Stopped, "it stopped as asked".into()),
            None if *reset || !evidence.was_ready => say(
                R::BootFailed,
                "the guest was reset before it was ready: its kernel panicked or could not boot; the console log says why".into(),
            ),
            None => say(R::Completed, "the guest powered itself off".into()),
        },
    }
}

fn by_record(record: &ExitRecord, asked: bool) -> Verdict {
    use TerminationReason as R;
    let code = (record.exit_code >= 0).then_some(record.exit_code);
    let detail = printable(&record.message);
    let detail = if detail.is_empty() {
        String::new()
    } else {
        format!(": {detail}")
    };
    let (reason, message) = match record.reason {
        ExitReason::Exited if asked => (R::Stopped, format!("it stopped as asked{detail}")),
        ExitReason::Exited if record.exit_code == 0 => (R::Completed, format!("the workload ended{detail}")),
        ExitReason::Exited => (
            R::Error,
            format!("the workload ended with status {}{detail}", record.exit_code),
        ),
        ExitReason::Shutdown => (R::Stopped, format!("it stopped as asked{detail}")),
        ExitReason::ShutdownForced => (
            R::Stopped,
            format!("it stopped as asked; what still ran in it after the grace period was killed{detail}"),
        ),
        ExitReason::PowerOff if asked => (R::Stopped, format!("it stopped as asked{detail}")),
        ExitReason::PowerOff => (R::Completed, format!("the guest powered itself off{detail}")),
        early => (
            R::BootFailed,
            format!("{}{detail}; the console log says more", early.as_str()),
        ),
    };
    Verdict {
        reason,
        exit_code: code,
        message,
    }
}

/// Guests write what they like: control characters do not reach terminals and status fields.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// A record holds the beginning of a message only; the console has all of it, if the guest came to print it.
pub fn with_whole_message(record: ExitRecord, console: &[u8]) -> ExitRecord {
    let said = format!("{}: {}", record.reason.as_str(), record.message);
    let text = String::from_utf8_lossy(console);
    let line = text.lines().rev().find_map(|line| {
        let whole = line.split_once("vmlet-init: ")?.1;
        whole.starts_with(&said).then_some(whole)
    });
    let message = line.and_then(|line| line.strip_prefix(record.reason.as_str())?.strip_prefix(": "));
    match message {
        Some(message) => ExitRecord {
            message: message.chars().take(MESSAGE).collect(),
            ..record
        },
        None => record,
    }
}

/// The last lines of what a VMM printed, for a message.
pub fn last_lines(output: &[u8], lines: usize, bytes: usize) -> String {
    let tail = &output[output.len().saturating_sub(bytes)..];
    let text = String::from_utf8_lossy(tail);
    let all: Vec<String> = text.lines().map(printable).filter(|l| !l.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn record(reason: ExitReason, exit_code: i32) -> ExitRecord {
        ExitRecord {
            reason,
            exit_code,
            boot_id: [0; 16],
            message: "de\u{1b}tail".into(),
        }
    }

    fn stop(killed: bool) -> Option<Stop> {
        Some(Stop {
            deadline: SystemTime::UNIX_EPOCH,
            grace: Duration::ZERO,
            followed: false,
            terminated: false,
            killed,
        })
    }

    fn gone(answered: bool, out_of_memory: bool) -> End {
        End::Gone {
            status: Some("exit status: 1".into()),
            output: "qemu: no".into(),
            out_of_memory,
            answered,
        }
    }

    fn judge(end: End, record: Option<&ExitRecord>, was_ready: bool, stop: Option<Stop>) -> Verdict {
        verdict(&Evidence {
            end,
            record,
            was_ready,
            stop,
        })
    }

    const OFF: End = End::Shutdown { reset: false };

    #[test]
    fn the_guests_own_word_decides_about_a_shutdown() {
        use TerminationReason as R;
        for (reason, code, asked, expected) in [
            (ExitReason::Exited, 0, false, R::Completed),
            (ExitReason::Exited, 3, false, R::Error),
            (ExitReason::Exited, 143, true, R::Stopped),
            (ExitReason::Shutdown, 0, true, R::Stopped),
            (ExitReason::PowerOff, -1, false, R::Completed),
            (ExitReason::PowerOff, -1, true, R::Stopped),
            (ExitReason::NothingToRun, -1, false, R::BootFailed),
            (ExitReason::InitFailed, -1, false, R::BootFailed),
        ] {
            let record = record(reason, code);
            let verdict = judge(OFF, Some(&record), true, asked.then(|| stop(false)).flatten());
            assert_eq!(verdict.reason, expected, "{reason:?}");
            assert_eq!(verdict.exit_code, (code >= 0).then_some(code));
            assert!(verdict.message.contains("de") && !verdict.message.contains('\u{1b}'));
        }
    }

    #[test]
    fn without_a_record_readiness_decides() {
        use TerminationReason as R;
        assert_eq!(judge(OFF, None, true, None).reason, R::Completed);
        assert_eq!(judge(OFF, None, false, None).reason, R::BootFailed);
        assert_eq!(
            judge(End::Shutdown { reset: true }, None, true, None).reason,
            R::BootFailed
        );
        assert_eq!(judge(OFF, None, true, stop(false)).reason, R::Stopped);
    }

    #[test]
    fn one_kill_is_told_whatever_else_is_seen() {
        for end in [OFF, End::Panicked, gone(true, false), gone(true, true)] {
            assert_eq!(judge(end, None, true, stop(true)).reason, TerminationReason::ForcedKill);
        }
    }

    #[test]
    fn a_vmm_ended_by_sigterm_is_told_by_what_its_guest_said() {
        for (followed, expected) in [
            (true, TerminationReason::Stopped),
            (false, TerminationReason::ForcedKill),
        ] {
            let stop = stop(false).map(|stop| Stop {
                followed,
                terminated: true,
                ..stop
            });
            assert_eq!(judge(gone(true, false), None, true, stop).reason, expected);
        }
        // Nobody asked its VMM to end: a stop that was under way does not explain it.
        let asked = judge(gone(true, false), None, true, stop(false));
        assert_eq!(asked.reason, TerminationReason::VmmDied);
    }

    #[test]
    fn a_vmm_that_never_answered_did_not_start() {
        use TerminationReason as R;
        let verdict = judge(gone(false, false), None, false, None);
        assert_eq!(verdict.reason, R::StartFailed);
        assert_eq!(verdict.message, "the VMM did not start (exit status: 1): qemu: no");
        assert_eq!(judge(gone(true, false), None, false, None).reason, R::VmmDied);
        assert_eq!(judge(gone(false, false), None, true, None).reason, R::VmmDied);
        assert_eq!(judge(gone(true, true), None, true, None).reason, R::OOMKilled);
    }

    #[test]
    fn a_message_that_a_record_has_no_room_for_is_found_on_the_console() {
        let short = ExitRecord {
            message: "the image's /etc/passwd has no u".into(),
            ..record(ExitReason::SetupFailed, -1)
        };
        let console = "[ 1.0] vmlet-init: SetupFailed: other\n\
            [ 1.1] vmlet-init: SetupFailed: the image's /etc/passwd has no user \"x\"\r\nbye\n";
        let whole = with_whole_message(short.clone(), console.as_bytes());
        assert_eq!(whole.message.trim_end(), "the image's /etc/passwd has no user \"x\"");
        assert_eq!(with_whole_message(short.clone(), b"\xff\nnothing"), short);
    }

    #[test]
    fn output_is_cut_to_its_last_lines() {
        assert_eq!(last_lines(b"a\nb\n\nc\x07\n", 2, 100), "b; c");
        assert_eq!(last_lines(b"0123456789", 2, 4), "6789");
        assert_eq!(last_lines(b"", 2, 4), "");
    }

    #[test]
    fn unknown_states_are_not_ends() {
        assert_eq!(VmStatus::parse("postmigrate"), VmStatus::Paused);
        assert_eq!(VmStatus::parse("shutdown"), VmStatus::Shutdown);
    }
}
