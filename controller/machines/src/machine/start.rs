//! Starting a machine, and taking hold of one that runs.

use std::ffi::OsString;
use std::io;
use std::time::SystemTime;

use tokio::time::Instant;

use crate::life::{End, Evidence, verdict};
use crate::machine::monitor::Link;
use crate::machine::{DRAIN, Guest, Machine, Ports};
use crate::observation::{DiskInfo, Phase, Termination, TerminationReason, VmmInfo};
use crate::prepare::{Prepared, prepare};
use crate::probe::Qemu;
use crate::process::{FoundVmm, Launch, Process};
use crate::qemu::argv::{Accelerator, Line, arguments, run_of, value_of};
use crate::qemu::qcow2;
use crate::record::Stage;
use crate::spec::MachineSpec;

impl Machine {
    /// Begins run `run`. What fails becomes this run's termination.
    pub(super) async fn start(&mut self, run: u64, spec: &MachineSpec) {
        tracing::info!(uid = self.uid, name = spec.name, run, "starting");
        self.busy = Some(Phase::Starting);
        self.problem = None;
        self.guest = Guest {
            fresh: true,
            ..Guest::default()
        };
        self.ports = Ports::default();
        self.record.begin(run);
        self.record.ports.clone_from(&spec.ports);
        self.note("asked");
        self.publish();
        if let Err(message) = self.launch(run, spec).await {
            tracing::warn!(uid = self.uid, run, "did not start: {message}");
            self.process = None;
            self.conclude(Termination {
                run,
                reason: TerminationReason::StartFailed,
                exit_code: None,
                message,
                finished_at: SystemTime::now(),
            });
        }
        self.busy = None;
    }

    async fn launch(&mut self, run: u64, spec: &MachineSpec) -> Result<(), String> {
        let host = self.host.clone();
        let qemu = host.facts.qemu.clone()?;
        let accelerator = host.facts.accelerator.clone()?;
        self.dir
            .create()
            .map_err(|error| format!("{}: {error}", self.dir.path().display()))?;
        // Nobody may hold the disk: not the VMM of a lost record either.
        if let Some(vmm) = self.find_stray().map_err(|error| format!("/proc: {error}"))? {
            return Err(format!("process {} already runs this machine", vmm.id.pid));
        }
        let identity = host.identity(&self.uid);
        let prepared = {
            let (dir, spec, host) = (self.dir.clone(), spec.clone(), host.clone());
            tokio::task::spawn_blocking(move || {
                let initrd = host.initrd(&spec)?;
                prepare(&dir, &spec, &initrd, identity.map(|i| i.id)).map_err(|e| e.to_string())
            })
            .await
            .map_err(|error| format!("preparing it failed: {error}"))??
        };
        if let Err(error) = self.console.rotate() {
            tracing::warn!(uid = self.uid, %error, "the console log was not rotated");
        }
        self.note("prepared");
        self.record.disk = Some(prepared.disk.clone());
        self.record.vmm = Some(VmmInfo {
            kind: "QEMU".to_owned(),
            accelerator: accelerator.as_str().to_owned(),
            version: qemu.version.clone(),
            pid: None,
        });
        // From here on a VMM may exist: this must outlive everything.
        self.record
            .write(self.dir.path(), true)
            .map_err(|error| format!("its record could not be written: {error}"))?;
        let arguments = command_line(&self.uid, run, spec, &prepared, &qemu, accelerator);
        let process = Process::launch(
            Launch {
                program: &qemu.path,
                arguments,
                inherited: prepared.inherited,
                output: prepared.output,
                identity,
                cgroups: host.cgroups.create(&self.uid, spec.memory_bytes),
            },
            &host.boot_id,
        )
        .map_err(|error| format!("{} cannot be executed: {error}", qemu.path.display()))?;
        self.note("executed");
        self.record.started_at = Some(SystemTime::now());
        self.record.stage = Stage::Live;
        self.record.process = Some(process.id.clone());
        self.process = Some(process);
        self.write_record(false);
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
                self.write_record(false);
            }
            Stage::Live => {
                let rebooted = self.record.process.as_ref().is_some_and(|p| p.boot_id != boot_id);
                let end = if rebooted { End::HostReboot } else { self.gone(None) };
                self.terminate(end, None);
            }
        }
        Ok(())
    }

    /// Fills a lost record from the command line of a living VMM and from the disk itself.
    fn restore(&mut self, vmm: &FoundVmm) {
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
        self.write_record(true);
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
        if self.process.is_none() || self.record.stop.is_some() || self.guest.paused.is_some() {
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
    pub(super) fn terminate(&mut self, end: End, exit: Option<&vmlet_init::channel::ExitRecord>) {
        let verdict = verdict(&Evidence {
            end,
            record: exit,
            was_ready: self.record.ready_at.is_some(),
            stop: self.record.stop,
        });
        self.conclude(Termination {
            run: self.record.run,
            reason: verdict.reason,
            exit_code: verdict.exit_code,
            message: verdict.message,
            finished_at: SystemTime::now(),
        });
    }
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
