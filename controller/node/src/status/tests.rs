//! What operators read in a status, word for word where it matters.

use super::*;
use std::time::Duration;
use vmlet_crds::VirtualMachineSpec;

struct Case {
    memory: Memory,
    decision: Decision,
    image: Part,
    kernel: Part,
    observation: Option<Observation>,
    disk_problem: Option<(&'static str, &'static str)>,
    now: SystemTime,
}

impl Case {
    fn new() -> Self {
        Self {
            memory: Memory::default(),
            decision: Decision::Keep,
            image: Part::Ready {
                digest: "sha256:1".into(),
            },
            kernel: Part::Ready {
                digest: "sha256:2".into(),
            },
            observation: None,
            disk_problem: None,
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
        }
    }

    fn phase(mut self, phase: Phase) -> Self {
        self.observation = Some(Observation {
            run: 1,
            phase,
            ..Observation::default()
        });
        self
    }

    fn status(&self) -> VirtualMachineStatus {
        let vm = VirtualMachine::new("a", VirtualMachineSpec::default());
        build(&Sight {
            vm: &vm,
            node: "n",
            memory: &self.memory,
            decision: self.decision,
            image: &self.image,
            kernel: &self.kernel,
            kernel_name: Some("k"),
            disk_problem: self.disk_problem,
            observation: self.observation.as_ref(),
            restart_required: false,
            now: self.now,
        })
    }

    fn ready(&self) -> (String, String) {
        let status = self.status();
        let ready = status
            .conditions
            .iter()
            .find(|c| c.type_ == "Ready")
            .expect("always set");
        (ready.status.clone(), ready.reason.clone())
    }
}

fn pair(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn all_conditions_are_set_from_the_first_visit_on() {
    let status = Case::new().status();
    let types: Vec<&str> = status.conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(
        types,
        [
            "Scheduled",
            "ImageReady",
            "KernelReady",
            "DiskReady",
            "NetworkReady",
            "Running",
            "GuestReady",
            "RestartRequired",
            "Completed",
            "Ready"
        ]
    );
}

#[test]
fn ready_names_the_first_thing_in_the_way() {
    let mut case = Case::new();
    case.decision = Decision::Start { declared: true };
    case.image = Part::Failed {
        reason: "NotFound".into(),
        message: "no such tag".into(),
        retry_at: case.now,
    };
    assert_eq!(case.ready(), pair("False", "NotFound"));
    case.image = Part::Waiting {
        reason: "Pulling",
        message: "1 of 2 MiB".into(),
    };
    assert_eq!(case.ready(), pair("False", "Pulling"));
    assert_eq!(Case::new().phase(Phase::Starting).ready(), pair("False", "Booting"));
    assert_eq!(
        Case::new().phase(Phase::Running { guest_ready: true }).ready(),
        pair("True", "Running")
    );
    assert_eq!(
        Case::new().phase(Phase::Running { guest_ready: false }).ready(),
        pair("False", "GoingDown"),
        "whether it comes up again is not known yet"
    );
    let unmanageable = Case::new().phase(Phase::Unmanageable {
        message: "its socket is gone".into(),
    });
    assert_eq!(unmanageable.ready(), pair("False", "Unmanageable"));
}

#[test]
fn a_machine_whose_vmm_was_not_executed_yet_is_not_said_to_run() {
    let status = Case::new().phase(Phase::Preparing).status();
    let (running, reason, _) = condition(&status, "Running");
    assert_eq!((running.as_str(), reason.as_str()), ("False", "Preparing"));
    assert_eq!(condition(&status, "GuestReady").1, "NotRunning");
    assert_eq!(Case::new().phase(Phase::Preparing).ready(), pair("False", "Starting"));
}

#[test]
fn who_waited_for_an_image_hears_of_the_disk_before_the_vmm() {
    let mut case = Case::new();
    assert_eq!(first_news(&VirtualMachineStatus::default()), Milestone::Vmm);
    assert_eq!(first_news(&case.status()), Milestone::Vmm);
    case.image = Part::Waiting {
        reason: "Pulling",
        message: "1 of 2 MiB".into(),
    };
    assert_eq!(first_news(&case.status()), Milestone::Disk);
}

#[test]
fn a_machine_that_runs_stays_ready_when_its_image_cannot_be_had_any_more() {
    let mut case = Case::new().phase(Phase::Running { guest_ready: true });
    case.image = Part::Failed {
        reason: "NotFound".into(),
        message: String::new(),
        retry_at: case.now,
    };
    assert_eq!(case.ready(), pair("True", "Running"));
}

#[test]
fn a_transition_time_moves_only_when_the_status_flips() {
    let mut case = Case::new().phase(Phase::Starting);
    let first = case.status();
    case.memory.status.conditions = first.conditions.clone();
    case.now += Duration::from_secs(60);
    let second = case.status();
    assert_eq!(first.conditions, second.conditions);
    case = case.phase(Phase::Running { guest_ready: true });
    let third = case.status();
    let at = |s: &VirtualMachineStatus| {
        s.conditions
            .iter()
            .find(|c| c.type_ == "Ready")
            .map(|c| c.last_transition_time.clone())
    };
    assert_ne!(at(&third), at(&second));
}

#[test]
fn a_long_message_is_cut_at_a_character() {
    let cut = truncated("ä".repeat(1000), 1024);
    assert!(cut.len() <= 1024 && cut.ends_with("..."));
}

/// Status, reason and message of a condition.
fn condition(status: &VirtualMachineStatus, type_: &str) -> (String, String, String) {
    let found = status.conditions.iter().find(|c| c.type_ == type_).expect("always set");
    (found.status.clone(), found.reason.clone(), found.message.clone())
}

fn triple(status: &str, reason: &str, message: &str) -> (String, String, String) {
    (status.to_owned(), reason.to_owned(), message.to_owned())
}

/// A machine whose last run ended so, about which this was decided.
fn ended(reason: vmlet_machines::TerminationReason, message: &str, decision: Decision) -> VirtualMachineStatus {
    let mut case = Case::new().phase(Phase::Stopped);
    case.decision = decision;
    if let Some(observation) = &mut case.observation {
        observation.termination = Some(vmlet_machines::Termination {
            run: 1,
            reason,
            exit_code: None,
            message: message.to_owned(),
            finished_at: case.now,
        });
    }
    case.status()
}

#[test]
fn an_end_by_failure_says_in_ready_why_it_ended_and_when_it_is_started_again() {
    use vmlet_machines::TerminationReason as R;
    for (reason, word, message) in [
        (
            R::GuestPanic,
            "GuestPanic",
            "the guest's kernel panicked; the console log says why",
        ),
        (
            R::OOMKilled,
            "OOMKilled",
            "the kernel killed the VMM for want of memory; give the machine or the host more",
        ),
    ] {
        let again = Decision::Wait {
            until: SystemTime::UNIX_EPOCH + Duration::from_secs(1010),
        };
        let status = ended(reason, message, again);
        assert_eq!(condition(&status, "Running"), triple("False", word, message));
        assert_eq!(condition(&status, "GuestReady"), triple("False", "NotRunning", ""));
        let ready = format!("started again at 00:16:50Z; the last run ended: {message}");
        assert_eq!(condition(&status, "Ready"), triple("False", "BackOff", &ready));
        let last = status.last_termination.expect("it ended");
        assert_eq!((last.reason.as_str(), last.message.as_str()), (word, message));
        assert_eq!(status.next_retry_time.map(|t| t.0.as_second()), Some(1010));
    }
}

#[test]
fn a_machine_that_had_to_be_killed_says_so_also_when_it_stays_halted() {
    let message = "it did not stop within its grace period and was killed; what it had not synced may be lost";
    let status = ended(vmlet_machines::TerminationReason::ForcedKill, message, Decision::Rest);
    assert_eq!(condition(&status, "Running"), triple("False", "ForcedKill", message));
    assert_eq!(
        condition(&status, "Ready"),
        triple("False", "Halted", "spec.runStrategy is Halted")
    );
    assert_eq!(status.last_termination.map(|t| t.reason).as_deref(), Some("ForcedKill"));
}

#[test]
fn after_a_reboot_of_the_host_ready_says_why_it_starts() {
    let message = "the host was restarted";
    let status = ended(
        vmlet_machines::TerminationReason::HostReboot,
        message,
        Decision::Start { declared: false },
    );
    assert_eq!(condition(&status, "Running"), triple("False", "HostReboot", message));
    assert_eq!(
        condition(&status, "Ready"),
        triple("False", "Starting", "the last run ended: the host was restarted")
    );
}

#[test]
fn what_cannot_be_managed_is_unknown_with_the_reason_in_every_condition_that_it_concerns() {
    let message = "its VMM (process 42) lives, but its socket is gone";
    let status = Case::new()
        .phase(Phase::Unmanageable {
            message: message.to_owned(),
        })
        .status();
    assert_eq!(
        condition(&status, "Running"),
        triple("Unknown", "Unmanageable", message)
    );
    assert_eq!(condition(&status, "GuestReady"), triple("Unknown", "Unmanageable", ""));
    assert_eq!(condition(&status, "Ready"), triple("False", "Unmanageable", message));
}

#[test]
fn a_failed_pull_says_when_it_is_tried_again() {
    let mut case = Case::new();
    case.decision = Decision::Start { declared: true };
    case.image = Part::Failed {
        reason: "Unavailable".into(),
        message: "image \"i\": r/i:1: connection refused".into(),
        retry_at: case.now + Duration::from_secs(10),
    };
    let message = "image \"i\": r/i:1: connection refused; tried again at 00:16:50Z";
    for type_ in ["ImageReady", "Ready"] {
        assert_eq!(
            condition(&case.status(), type_),
            triple("False", "Unavailable", message)
        );
    }
}

#[test]
fn a_stop_is_told_also_of_a_machine_that_cannot_be_talked_to() {
    let mut case = Case::new().phase(Phase::Unmanageable {
        message: "its socket is gone".into(),
    });
    case.decision = Decision::Stop;
    assert_eq!(case.ready(), pair("False", "Stopping"));
    assert!(condition(&case.status(), "Ready").2.contains("its socket is gone"));
}

#[test]
fn the_ports_that_were_told_stand_while_they_cannot_be_asked_for() {
    let mut case = Case::new().phase(Phase::Unmanageable {
        message: "its socket is gone".into(),
    });
    let ports = vec![PortStatus {
        name: "ssh".into(),
        protocol: Protocol::Tcp,
        host_ip: "127.0.0.1".into(),
        host_port: Some(2222),
        guest_port: 22,
        message: None,
    }];
    case.memory.status.ports.clone_from(&ports);
    let status = case.status();
    assert_eq!(status.ports, ports);
    assert_eq!(condition(&status, "NetworkReady").0, "Unknown");
    let stopped = Case {
        memory: case.memory,
        ..Case::new().phase(Phase::Stopped)
    };
    assert_eq!(stopped.status().ports, []);
}

#[test]
fn what_is_in_the_way_of_the_next_start_is_not_said_of_the_disk_of_a_machine_that_runs() {
    let mut case = Case::new().phase(Phase::Running { guest_ready: true });
    case.disk_problem = Some(("SecretNotFound", "secret \"ks\" does not exist"));
    assert_eq!(condition(&case.status(), "DiskReady").0, "False", "it has none");
    if let Some(observation) = &mut case.observation {
        observation.disk = Some(vmlet_machines::DiskInfo {
            base_id: "sha256:1".into(),
            size_bytes: 1 << 30,
            pinned: Vec::new(),
        });
    }
    let (status, _, message) = condition(&case.status(), "DiskReady");
    assert_eq!(status, "True");
    assert!(message.contains("secret \"ks\" does not exist"), "{message}");
    assert_eq!(case.ready(), pair("True", "Running"));
}
