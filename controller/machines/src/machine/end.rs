//! The end of a run, and of a machine.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::time::Instant;
use vmlet_init::channel::{ExitRecord, RECORD_SIZE};

use crate::crash::crash_point;
use crate::directory::{CONTROL, INITRD, MONITOR, VMM_LOG};
use crate::durable;
use crate::life::{End, last_lines, with_whole_message};
use crate::machine::monitor::Link;
use crate::machine::{Guest, Machine, Ports, RETRY};
use crate::observation::Termination;
use crate::process::Process;
use crate::qemu::argv::{EXIT, EXIT_RING};
use crate::record::Stage;

/// How long a VMM whose guest has ended may take to go.
pub const QUIT: Duration = Duration::from_secs(5);
/// How much of the console is looked at for a guest's last words, in bytes.
const CONSOLE_TAIL: u64 = 16 << 10;
/// The VMM's own log is cut when it grows beyond this.
const MAX_VMM_LOG: u64 = 256 << 10;

impl Machine {
    /// The guest has ended and the VMM waits. Why is recorded first, then the VMM is told to go; its end
    /// is seen as every VMM's is.
    pub(super) async fn guest_ended(&mut self, end: End) {
        self.drain_console().await;
        // A crash between the two: the record has the verdict already, only the quitting is left.
        if !self.run_is_over() {
            let exit = match end {
                End::Shutdown { .. } => self
                    .read_exit_record()
                    .await
                    .map(|record| with_whole_message(record, &self.console.tail(CONSOLE_TAIL))),
                _ => None,
            };
            crash_point("end-read");
            let termination = self.judge(end, exit.as_ref());
            self.conclude(termination).await;
        }
        crash_point("end-recorded");
        self.quit_by = Some(Instant::now() + QUIT);
        self.call("quit", json!({})).await;
        self.link = Link::None;
        self.drain.at = None;
    }

    /// Reading pops: one record is read and no more than needed, so that an agent that dies before it has
    /// noted the verdict leaves the next copy to its successor.
    async fn read_exit_record(&mut self) -> Option<ExitRecord> {
        let mut bytes = Vec::new();
        // What root in the guest wrote into the port is read over, as much as the ring can hold.
        for _ in 0..=EXIT_RING as usize / RECORD_SIZE {
            let arguments = json!({"device": EXIT, "size": RECORD_SIZE, "format": "base64"});
            let answer = self.call("ringbuf-read", arguments).await?;
            let part = STANDARD.decode(answer.as_str()?).ok()?;
            if part.is_empty() {
                return None;
            }
            bytes.extend(part);
            if let Some(record) = ExitRecord::last_in(&bytes).filter(|r| !self.is_stale(r)) {
                return Some(record);
            }
        }
        None
    }

    /// Whether a record is of a boot before the last reset.
    fn is_stale(&self, record: &ExitRecord) -> bool {
        self.guest.reset && self.record.guest_boot_id.as_deref() == Some(&record.boot_id_text())
    }

    /// The VMM's process is gone.
    pub(super) async fn vmm_ended(&mut self) {
        let status = self.process.as_mut().and_then(Process::reap);
        if !self.run_is_over() {
            let end = self
                .too_slow
                .take()
                .unwrap_or_else(|| self.gone(status.map(|s| s.to_string())));
            let termination = self.judge(end, None);
            self.conclude(termination).await;
        }
        crash_point("end-gone");
        self.gone_for_good();
    }

    /// How a VMM looks that is gone.
    pub(super) fn gone(&self, status: Option<String>) -> End {
        let log = durable::read_bounded(&self.dir.file(VMM_LOG), 4 * MAX_VMM_LOG).unwrap_or_default();
        End::Gone {
            status,
            output: last_lines(&log, 3, 1024),
            out_of_memory: self.host.cgroups.out_of_memory(&self.uid),
            answered: self.guest.answered_vmm,
        }
    }

    /// Notes how the run ended, for good.
    pub(super) async fn conclude(&mut self, termination: Termination) {
        self.note_end(termination);
        if self.dir.exists() {
            let _ = self.sync_record().await;
        }
    }

    /// The same without writing it down.
    pub(super) fn note_end(&mut self, termination: Termination) {
        tracing::info!(
            uid = self.uid,
            run = termination.run,
            reason = %termination.reason,
            "ended: {}",
            termination.message
        );
        self.record.termination = Some(termination);
        self.record.stage = Stage::Idle;
    }

    fn gone_for_good(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.reap();
        }
        self.record.over();
        self.write_record();
        self.link = Link::None;
        self.kill_sent = false;
        self.too_slow = None;
        self.quit_by = None;
        self.drain.at = None;
        self.retry_at = None;
        self.guest = Guest::default();
        self.ports = Ports::default();
        if let Err(error) = self.host.cgroups.remove(&self.uid) {
            tracing::debug!(uid = self.uid, %error, "its cgroup stays for now");
        }
        for name in [MONITOR, CONTROL, INITRD] {
            let _ = std::fs::remove_file(self.dir.file(name));
        }
    }

    /// Removes everything of this machine. Every step is taken whatever the others say, needs the uid
    /// alone, and may be repeated.
    pub(super) async fn delete(&mut self) {
        let mut errors = Vec::new();
        let stray = self.find_stray().and_then(|found| match found {
            Some(vmm) => Process::adopt(&vmm.id, &self.host.boot_id),
            None => Ok(None),
        });
        match stray {
            Ok(Some(process)) => {
                if let Err(error) = process.kill() {
                    errors.push(format!("process {}: {error}", process.id.pid));
                } else if tokio::time::timeout(QUIT, process.exited()).await.is_err() {
                    errors.push(format!("process {} does not end", process.id.pid));
                }
            }
            Ok(None) => {}
            Err(error) => errors.push(format!("/proc: {error}")),
        }
        crash_point("delete-begun");
        if let Err(error) = self.host.cgroups.remove(&self.uid) {
            errors.push(format!("its cgroup: {error}"));
        }
        // A VMM that lives keeps its disk: nothing is taken from under it.
        if errors.iter().all(|error| !error.starts_with("process")) {
            let dir = self.dir.clone();
            let removed = tokio::task::spawn_blocking(move || dir.remove()).await;
            match removed.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(()) => {}
                Err(error) => errors.push(format!("{}: {error}", self.dir.path().display())),
            }
        }
        crash_point("delete-removed");
        if errors.is_empty() {
            tracing::info!(uid = self.uid, "deleted");
            self.deleted = true;
            return;
        }
        let message = format!("it cannot be removed yet: {}", errors.join("; "));
        tracing::warn!(uid = self.uid, "{message}");
        self.problem = Some(message);
        self.retry_at = Some(Instant::now() + RETRY);
    }

    /// What QEMU prints is little; what a guest makes it print is not bounded.
    pub(super) fn bound_vmm_log(&self) {
        let path = self.dir.file(VMM_LOG);
        if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_VMM_LOG)
            && let Ok(file) = std::fs::File::options().write(true).open(&path)
        {
            let _ = file.set_len(0);
        }
    }
}
