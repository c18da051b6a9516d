//! Starting a machine, and taking hold of one that runs.

use std::ffi::OsString;
use std::io;
use std::time::SystemTime;

use tokio::time::Instant;

use crate::cgroup::Limits;
use crate::crash::crash_point;
use crate::directory::MachineDir;
use crate::host::Host;
use crate::life::{End, Evidence, verdict};
use crate::machine::end::QUIT;
use crate::machine::monitor::Link;
use crate::machine::{DRAIN, Guest, Machine, Ports, Preparing};
use crate::network;
use crate::observation::{DiskInfo, Termination, TerminationReason, VmmInfo};
use crate::prepare::{Prepared, prepare};
use crate::probe::Qemu;
use crate::process::{FoundVmm, Launch, Process};
use crate::qemu::argv::{Accelerator, Line, arguments, run_of, value_of};
use crate::qemu::qcow2;
use crate::record::Stage;
use crate::spec::{Goal, MachineSpec};

impl Machine {
    /// Begins run `run`: all that blocks is done on another thread. What fails becomes this run's termination.
    pub(super) fn begin_start(&mut self, run: u64, spec: Box<MachineSpec>) {
        tracing::info!(uid = self.uid, name = spec.name, run, "starting");
        self.problem = None;
        self.kill_sent = false;
        self.too_slow = None;
        self.guest = Guest {
            fresh: true,
            ..Guest::default()
        };
        self.ports = Ports::default();
        self.record.begin(run);
        self.record.ports.clone_from(&spec.ports);
        self.note("asked");
        let (dir, host, uid, given) = (self.dir.clone(), self.host.clone(), self.uid.clone(), spec.clone());
        let work = tokio::task::spawn_blocking(move || ready(&dir, &host, &uid, &given));
        self.preparing = Some(Preparing { run, spec, work });
    }

    /// A stop came before the VMM was executed: the run is over, and what is prepared for it is dropped.
    pub(super) async fn abandon_start(&mut self) {
        self.conclude(Termination {
            run: self.record.run,
            reason: TerminationReason::Stopped,
            exit_code: None,
            message: "it was asked to stop before its VMM was started".to_owned(),
            finished_at: SystemTime::now(),
        })
        .await;
    }

    /// All lies ready: executes the VMM, unless the run is over by now.
    pub(super) async fn prepared(&mut self, result: Result<Prepared, String>) {
        let Some(Preparing { run, spec, .. }) = self.preparing.take() else {
            return;
        };
        if self.record.run != run || self.record.stage != Stage::Launching {
            return;
        }
        // A stop that came in the same moment is heard before, not after.
        if !matches!(*self.goal.borrow(), Some(Goal::Run { run: wanted, .. }) if wanted == run) {
            self.abandon_start().await;
            return;
        }
        let launched = match result {
            Ok(prepared) => {
                self.record.disk = Some(prepared.disk.clone());
                // A new disk is told at once: its guest may take every processor soon.
                self.publish();
                let longest = self.host.config.longest_hold;
                let let_go = self.holds.wait_for(|holds| *holds == 0);
                let _ = tokio::time::timeout(longest, let_go).await;
                self.launch(run, &spec, prepared).await
            }
            Err(message) => Err(message),
        };
        if let Err(message) = launched {
            tracing::warn!(uid = self.uid, run, "did not start: {message}");
            self.process = None;
            self.conclude(Termination {
                run,
                reason: TerminationReason::StartFailed,
                exit_code: None,
                message,
                finished_at: SystemTime::now(),
            })
            .await;
        }
    }

    async fn launch(&mut self, run: u64, spec: &MachineSpec, prepared: Prepared) -> Result<(), String> {
        let host = self.host.clone();
        let qemu = host.facts.qemu.clone()?;
        let accelerator = host.facts.accelerator.clone()?;
        if let Err(error) = self.console.begin_run() {
            tracing::warn!(uid = self.uid, %error, "the console log was not rotated");
        }
        self.note("prepared");
        self.record.initrd = prepared.shared_initrd.clone();
        self.record.vmm = Some(VmmInfo {
            kind: "QEMU".to_owned(),
            accelerator: accelerator.as_str().to_owned(),
            version: qemu.version.clone(),
            pid: None,
        });
        crash_point("start-before-record");
        // From here on a VMM may exist: this must outlive everything.
        self.sync_record()
            .await
            .map_err(|error| format!("its record could not be written: {error}"))?;
        crash_point("start-recorded");
        let arguments = command_line(&self.uid, run, spec, &prepared, &qemu, accelerator);
        let process = Process::launch(
            Launch {
                program: &qemu.path,
                arguments,
                inherited: prepared.inherited,
                output: prepared.output,
                identity: host.identity(&self.uid),
                low_ports: network::wants_privilege(&spec.ports, host.first_free_port),
                cgroups: prepared.cgroups,
            },
            &host.boot_id,
        )
        .map_err(|error| format!("{} cannot be executed: {error}", qemu.path.display()))?;
        crash_point("start-executed");
        self.note("executed");
        self.record.started_at = Some(SystemTime::now());
        self.record.stage = Stage::Live;
        self.record.process = Some(process.id.clone());
        self.process = Some(process);
        self.guest.keys = Some(spec.guest.authorized_keys.clone());
        self.write_record();
        crash_point("start-noted");
        self.drain.pause = DRAIN.0;
        self.link = Link::connecting(&self.dir, host.config.vmm_deadline, host.config.call_timeout);
        Ok(())
    }

    /// Looks whether what the record says still lives, and takes hold of it. What died while nobody
    /// looked gets its verdict.
    pub(super) fn find_process(&mut self, vmm: Option<FoundVmm>) -> io::Result<()> {
        let boot_id = self.host.boot_id.clone();
        if let Some(id) = &self.record.process {
            self.process = Process::adopt(id, &boot_id)?;
        }
        if self.process.is_none()
            && let Some(vmm) = vmm
        {
            self.process = Process::adopt(&vmm.id, &boot_id)?;
            if self.process.is_some() {
                self.restore(&vmm);
            }
        }
        if self.process.is_some() {
            tracing::info!(uid = self.uid, run = self.record.run, "adopting");
            self.link = Link::adopting(&self.dir, self.host.config.call_timeout);
            // Its end is recorded, and the agent that was to let it go is no more.
            self.quit_by = self.run_is_over().then(|| Instant::now() + QUIT);
            return Ok(());
        }
        match self.record.stage {
            Stage::Idle => {}
            // Executed perhaps, and gone without a trace: as if it had not been begun.
            Stage::Launching => {
                let run = self.record.run.saturating_sub(1);
                let termination = self.record.termination.take();
                self.record.begin(run);
                self.record.stage = Stage::Idle;
                self.record.termination = termination;
                self.write_record();
            }
            Stage::Live => {
                let rebooted = self.record.process.as_ref().is_some_and(|p| p.boot_id != boot_id);
                if !self.run_is_over() {
                    let end = if rebooted { End::HostReboot } else { self.gone(None) };
                    let termination = self.judge(end, None);
                    self.note_end(termination);
                }
                self.record.over();
                let written = self.record.write(self.dir.path(), true);
                let _ = self.told(written);
            }
        }
        Ok(())
    }

    /// Fills a lost record from the command line of a living VMM and from the disk itself.
    fn restore(&mut self, vmm: &FoundVmm) {
        // It may be lost as a whole; what is recorded from now on needs a place.
        let _ = self.dir.create();
        self.record.run = run_of(&vmm.argv).unwrap_or(self.record.run).max(self.record.run);
        self.record.stage = Stage::Live;
        self.record.process = Some(vmm.id.clone());
        self.record.started_at.get_or_insert_with(SystemTime::now);
        if self.record.vmm.is_none() {
            let tcg = value_of(&vmm.argv, "-accel").is_none_or(|a| a.starts_with("tcg"));
            let accelerator = if tcg { Accelerator::Tcg } else { Accelerator::Kvm };
            self.record.vmm = Some(VmmInfo {
                kind: "QEMU".to_owned(),
                accelerator: accelerator.as_str().to_owned(),
                version: String::new(),
                pid: None,
            });
        }
        if self.record.disk.is_none() {
            self.record.disk = self.disk_of_overlay();
        }
        self.write_record();
    }

    fn disk_of_overlay(&self) -> Option<DiskInfo> {
        let file = std::fs::File::open(self.dir.file(crate::directory::OVERLAY)).ok()?;
        let overlay = qcow2::read(&file).ok()?;
        Some(DiskInfo {
            base_id: overlay.base_id,
            size_bytes: overlay.size,
            pinned: vec![overlay.base.into()],
        })
    }

    pub(super) fn find_stray(&self) -> io::Result<Option<FoundVmm>> {
        let host = &self.host;
        crate::process::find_vmm(&self.uid, &host.boot_id, |user| host.is_ours(user))
    }

    /// When this boot must have come to readiness.
    pub(super) fn boot_deadline(&self) -> Option<Instant> {
        let ends = self.record.stop.is_some() || self.too_slow.is_some() || self.run_is_over();
        if self.process.is_none() || ends || self.guest.paused.is_some() {
            return None;
        }
        match (self.record.ready_at, self.record.started_at) {
            (None, Some(started)) => Some(super::instant_of(started + self.host.config.guest_deadline)),
            _ => self.guest.reboot_deadline,
        }
    }

    /// Ends a boot that took too long.
    pub(super) async fn check_boot_deadline(&mut self) {
        if self.boot_deadline().is_none_or(|at| at > Instant::now()) {
            return;
        }
        let seconds = self.host.config.guest_deadline.as_secs();
        self.kill_too_slow(
            format!("the guest was not ready within {seconds} s; the console log says how far it came"),
            true,
        )
        .await;
    }

    /// Says how this run ended, from how it was seen to end.
    pub(super) fn judge(&self, end: End, exit: Option<&vmlet_init::channel::ExitRecord>) -> Termination {
        let verdict = verdict(&Evidence {
            end,
            record: exit,
            was_ready: self.record.ready_at.is_some(),
            stop: self.record.stop,
        });
        Termination {
            run: self.record.run,
            reason: verdict.reason,
            exit_code: verdict.exit_code,
            message: verdict.message,
            finished_at: SystemTime::now(),
        }
    }
}

/// What must be there before the VMM is executed. Blocks.
fn ready(dir: &MachineDir, host: &Host, uid: &str, spec: &MachineSpec) -> Result<Prepared, String> {
    host.facts.qemu.as_ref().map_err(String::clone)?;
    host.facts.accelerator.as_ref().map_err(String::clone)?;
    dir.create()
        .map_err(|error| format!("{}: {error}", dir.path().display()))?;
    crash_point("start-directory");
    let cgroups = host.cgroups.clone();
    // Not waited for: it only makes the move of the VMM into its cgroup short.
    std::thread::spawn(move || cgroups.expect_move());
    // Nobody may hold the disk: not the VMM of a lost record either.
    let stray = crate::process::find_vmm(uid, &host.boot_id, |user| host.is_ours(user));
    if let Some(vmm) = stray.map_err(|error| format!("/proc: {error}"))? {
        return Err(format!("process {} already runs this machine", vmm.id.pid));
    }
    let initrd = host.initrd(spec)?;
    let user = host.identity(uid).map(|identity| identity.id);
    let mut prepared = prepare(dir, spec, &initrd, user).map_err(|error| error.to_string())?;
    prepared.cgroups = host.cgroups.create(
        uid,
        Limits {
            cpus: spec.cpus,
            memory_bytes: spec.memory_bytes,
        },
    );
    crash_point("start-prepared");
    Ok(prepared)
}

fn command_line(
    uid: &str,
    run: u64,
    spec: &MachineSpec,
    prepared: &Prepared,
    qemu: &Qemu,
    accelerator: Accelerator,
) -> Vec<OsString> {
    let line = Line {
        uid,
        run,
        cpus: spec.cpus,
        memory_bytes: spec.memory_bytes,
        accelerator,
        qboot: qemu.qboot && prepared.kernel_is_elf,
        kernel_args: &spec.kernel_args,
    };
    arguments(&line, &prepared.descriptors)
        .into_iter()
        .map(OsString::from)
        .collect()
}
