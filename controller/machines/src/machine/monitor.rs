//! A machine's VMM seen through its monitor.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::time::Instant;
use vmlet_init::channel::Request;

use crate::directory::{MONITOR, MachineDir};
use crate::life::{End, VmStatus};
use crate::machine::{ADOPTING, DRAIN, Machine, PORT_RETRY, RETRY, Said, ended, time};
use crate::network::{self, Forward, parse_usernet};
use crate::process::Process;
use crate::qemu::argv::{CONSOLE, CONSOLE_RING, READY};
use crate::qemu::qmp::{Event, Qmp, QmpError};
use crate::spec::{MachineSpec, PortForward};

type Opening = Pin<Box<dyn Future<Output = Result<Qmp, QmpError>> + Send>>;

/// The connection to a VMM's monitor.
pub enum Link {
    /// There is no VMM.
    None,
    /// On its way; with the reason why the former one ended.
    Opening(Opening, Option<String>),
    /// In use.
    Up(Box<Qmp>),
    /// Broken; tried again later, less and less often.
    Down {
        /// When.
        retry: Pin<Box<tokio::time::Sleep>>,
        /// Why, for people.
        message: String,
    },
}

/// What happens on a link.
pub enum LinkEvent {
    Opened(Qmp),
    Told(Event),
    Broken(QmpError),
    Retry,
}

/// Bytes of console that are read at once.
const PART: usize = 64 << 10;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

impl Link {
    /// A new connection to the monitor in `dir`.
    pub fn connecting(dir: &MachineDir, patience: Duration, timeout: Duration) -> Link {
        Link::Opening(open(dir.clone(), patience, timeout), None)
    }

    /// A new connection to a VMM that was found running.
    pub fn adopting(dir: &MachineDir, timeout: Duration) -> Link {
        Link::Opening(open(dir.clone(), timeout, timeout), Some(ADOPTING.to_owned()))
    }

    /// The next thing that happens. May be cancelled and called again.
    pub async fn event(&mut self) -> LinkEvent {
        match self {
            Link::None => std::future::pending().await,
            Link::Opening(opening, _) => match opening.await {
                Ok(qmp) => LinkEvent::Opened(qmp),
                Err(error) => LinkEvent::Broken(error),
            },
            Link::Up(qmp) => match qmp.next_event().await {
                Ok(event) => LinkEvent::Told(event),
                Err(error) => LinkEvent::Broken(error),
            },
            Link::Down { retry, .. } => {
                retry.await;
                LinkEvent::Retry
            }
        }
    }

    /// Why the VMM cannot be talked to, if it cannot.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Link::Down { message, .. } | Link::Opening(_, Some(message)) => Some(message.clone()),
            _ => None,
        }
    }
}

fn open(dir: MachineDir, patience: Duration, timeout: Duration) -> Opening {
    Box::pin(async move {
        let stream = dir.connect(MONITOR).await?;
        Qmp::open(stream, patience, timeout).await
    })
}

impl Machine {
    pub(super) async fn on_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Opened(qmp) => {
                self.link = Link::Up(Box::new(qmp));
                if !std::mem::replace(&mut self.guest.answered_vmm, true) && self.guest.fresh {
                    self.note("vmmAnswered");
                }
                self.attach().await;
            }
            LinkEvent::Told(event) => self.on_event(event).await,
            LinkEvent::Broken(error) => self.link_broken(&error).await,
            LinkEvent::Retry => {
                let config = &self.host.config;
                let message = self.link.trouble();
                let opening = open(self.dir.clone(), config.call_timeout, config.call_timeout);
                self.link = Link::Opening(opening, message);
            }
        }
    }

    async fn link_broken(&mut self, error: &QmpError) {
        // It quits, as it was told to, or has been killed: its end is about to be seen.
        if self.quit_by.is_some() || self.kill_sent {
            self.link = Link::None;
            return;
        }
        // A VMM that never answered in this run has not started.
        if self.guest.fresh && !self.guest.answered_vmm {
            let timeout = matches!(error, QmpError::Timeout { .. });
            if timeout {
                self.link = Link::None;
                self.kill_too_slow(format!("the VMM did not start: {error}"), false)
                    .await;
                return;
            }
        }
        let pause = match &self.link {
            Link::Opening(_, Some(_)) => (self.last_pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE),
            _ => FIRST_PAUSE,
        };
        self.last_pause = pause;
        let message = format!("its VMM lives and cannot be talked to: {error}");
        tracing::warn!(uid = self.uid, "{message}");
        self.drain.at = None;
        self.link = Link::Down {
            retry: Box::pin(tokio::time::sleep(pause)),
            message,
        };
    }

    /// One call to the VMM. A broken connection is noted; None: no answer to use.
    pub(super) async fn call(&mut self, command: &'static str, arguments: Value) -> Option<Value> {
        let mut qmp = match std::mem::replace(&mut self.link, Link::None) {
            Link::Up(qmp) => qmp,
            other => {
                self.link = other;
                return None;
            }
        };
        let result = {
            let mut answer = std::pin::pin!(qmp.execute(command, arguments));
            let mut agent_here = true;
            loop {
                let kill_at = self.kill_at();
                // A VMM that hangs holds up neither what people want nor its own kill.
                tokio::select! {
                    biased;
                    result = &mut answer => break result,
                    // What is to be done about its end is done where it is seen next.
                    () = ended(self.process.as_ref()) => return None,
                    changed = self.goal.changed(), if agent_here => {
                        agent_here = changed.is_ok();
                        self.goal_heard |= agent_here;
                        let goal = self.goal.borrow().clone();
                        self.heed(goal.as_ref());
                    }
                    () = time(kill_at) => self.kill_when_due(),
                }
            }
        };
        self.link = Link::Up(qmp);
        match result {
            Ok(value) => Some(value),
            Err(error) if error.breaks_connection() => {
                Box::pin(self.link_broken(&error)).await;
                None
            }
            Err(error) => {
                tracing::warn!(uid = self.uid, %error, "call refused");
                None
            }
        }
    }

    /// The monitor answers for the first time, or again: all that events would have told is asked for.
    async fn attach(&mut self) {
        if let Some(ports) = self.call("query-chardev", json!({})).await {
            let ready = is_ready(&ports);
            self.set_ready(ready).await;
        }
        let wanted = self.record.ports.clone();
        self.set_ports(&wanted).await;
        self.drain.pause = DRAIN.0;
        self.drain_console().await;
        self.look_at_status().await;
    }

    pub(super) async fn on_event(&mut self, event: Event) {
        match event.name.as_str() {
            "VSERPORT_CHANGE" if event.data["id"] == READY => {
                let open = event.data["open"].as_bool().unwrap_or(false);
                self.set_ready(open).await;
            }
            "RESET" if event.data["guest"].as_bool() == Some(true) => {
                self.guest.reset = true;
                let deadline = Instant::now() + self.host.config.guest_deadline;
                self.guest.reboot_deadline.get_or_insert(deadline);
            }
            "SHUTDOWN" => {
                self.guest.reset |= event.data["reason"] == "guest-reset";
                self.look_at_status().await;
            }
            "STOP" | "RESUME" | "GUEST_PANICKED" | "BLOCK_IO_ERROR" => self.look_at_status().await,
            _ => {}
        }
    }

    async fn look_at_status(&mut self) {
        let Some(answer) = self.call("query-status", json!({})).await else {
            return;
        };
        let status = VmStatus::parse(answer["status"].as_str().unwrap_or_default());
        self.guest.paused = None;
        match status {
            VmStatus::Running => {}
            VmStatus::Shutdown => {
                let reset = self.guest.reset;
                Box::pin(self.guest_ended(End::Shutdown { reset })).await;
            }
            VmStatus::Panicked => Box::pin(self.guest_ended(End::Panicked)).await,
            VmStatus::InternalError => Box::pin(self.guest_ended(End::InternalError)).await,
            VmStatus::IoError => {
                self.guest.paused = Some(
                    "the host has no space for what the guest writes (or its disk fails); it goes on when there is space"
                        .to_owned(),
                );
                self.retry_at = Some(Instant::now() + RETRY);
            }
            VmStatus::Paused => self.guest.paused = Some("paused in its VMM by somebody else".to_owned()),
        }
    }

    /// What is to be tried again: a port that was taken, a guest that waits for space.
    pub(super) async fn retry(&mut self) {
        let refused = self.ports.status.iter().any(|port| port.error.is_some());
        if self.process.is_some()
            && refused
            && let Some(wanted) = self.ports.applied.clone()
        {
            self.set_ports(&wanted).await;
        }
        if self.process.is_some() && self.guest.paused.is_some() {
            // Never blindly: it may have panicked meanwhile, and a panicked guest must not go on.
            let Some(answer) = self.call("query-status", json!({})).await else {
                return;
            };
            if VmStatus::parse(answer["status"].as_str().unwrap_or_default()) == VmStatus::IoError {
                self.call("cont", json!({})).await;
            }
            self.look_at_status().await;
        }
    }

    async fn set_ready(&mut self, ready: bool) {
        let was = std::mem::replace(&mut self.guest.ready, ready);
        if !ready {
            self.guest.stopping = false;
            return;
        }
        if was {
            return;
        }
        self.guest.reset = false;
        self.guest.reboot_deadline = None;
        // From now on a reset is a reboot, in this same VMM.
        self.call("set-action", json!({"reboot": "reset"})).await;
        if self.record.ready_at.is_none() {
            self.record.ready_at = Some(SystemTime::now());
            self.note("guestReady");
            self.write_record();
        }
        self.drain.pause = DRAIN.0;
        self.greet();
    }

    /// Asks the guest who it is.
    pub(super) fn greet(&mut self) {
        if self.guest.ready && self.process.is_some() {
            self.ask(Request::hello());
        }
    }

    pub(super) async fn on_said(&mut self, said: Said) {
        self.guest.asking = false;
        match said.answer {
            Ok(answer) => {
                let known = self.record.guest_boot_id.as_deref();
                if known != Some(answer.boot_id.as_str()) && is_boot_id(&answer.boot_id) {
                    if known.is_some() {
                        self.record.reboots += 1;
                        // It took what its configuration says, which is that of the start.
                        self.guest.keys = None;
                    }
                    self.record.guest_boot_id = Some(answer.boot_id.clone());
                    self.write_record();
                }
                if matches!(said.request, Request::Shutdown { .. }) {
                    self.guest.stopping = true;
                    if let Some(stop) = self.record.stop.as_mut().filter(|stop| !stop.followed) {
                        stop.followed = true;
                        self.write_record();
                    }
                }
                if let Request::AuthorizedKeys { authorized_keys } = said.request {
                    self.guest.keys_refused.clone_from(&answer.error);
                    self.guest.keys = Some(authorized_keys);
                }
                self.guest.answer = Some(answer);
            }
            Err(error) if self.process.is_some() => {
                tracing::debug!(uid = self.uid, %error, "no answer from the guest");
                self.guest.ask_again_at = Some(Instant::now() + Duration::from_secs(1));
                if matches!(said.request, Request::Shutdown { .. }) {
                    self.press_power().await;
                }
            }
            Err(_) => {}
        }
    }

    /// Moves what the console ring holds into the log.
    pub(super) async fn drain_console(&mut self) {
        let mut any = false;
        const { assert!(CONSOLE_RING >= PART as u64) };
        loop {
            let arguments = json!({"device": CONSOLE, "size": PART, "format": "base64"});
            let Some(answer) = self.call("ringbuf-read", arguments).await else {
                break;
            };
            let bytes = STANDARD.decode(answer.as_str().unwrap_or_default()).unwrap_or_default();
            any |= !bytes.is_empty();
            if let Err(error) = self.console.append(&bytes) {
                tracing::warn!(uid = self.uid, %error, "console output is lost");
            }
            if bytes.len() < PART {
                break;
            }
        }
        self.bound_vmm_log();
        let (shortest, longest) = DRAIN;
        self.drain.pause = if any {
            shortest
        } else {
            (self.drain.pause * 2).min(longest)
        };
        self.drain.at = matches!(self.link, Link::Up(_)).then(|| Instant::now() + self.drain.pause);
    }

    /// Changes what can be changed while it runs.
    pub(super) async fn apply_live(&mut self, spec: &MachineSpec) {
        if self.record.ports != spec.ports {
            self.record.ports.clone_from(&spec.ports);
            self.write_record();
        }
        if self.ports.applied.as_ref() != Some(&spec.ports) {
            self.set_ports(&spec.ports).await;
        }
        self.tell_keys(&spec.guest.authorized_keys);
    }

    /// Tells the guest root's keys, if it may hear and knows others.
    fn tell_keys(&mut self, keys: &[String]) {
        let guest = &self.guest;
        // Who has answered in this boot: before, it reads its configuration.
        let hears = guest.ready && guest.answer.is_some() && !guest.asking && guest.ask_again_at.is_none();
        if hears && guest.keys.as_deref() != Some(keys) {
            self.ask(Request::AuthorizedKeys {
                authorized_keys: keys.to_vec(),
            });
        }
    }

    async fn set_ports(&mut self, wanted: &[PortForward]) {
        let Some(there) = self.forwards().await else { return };
        let plan = network::plan(wanted, there);
        for forward in &plan.remove {
            self.monitor_command(network::remove_command(forward)).await;
        }
        let mut status = Vec::new();
        for (want, kept) in wanted.iter().zip(plan.kept) {
            status.push(match kept {
                Some(forward) => network::status(want, Some(forward), None),
                None => match self.add_forward(want).await {
                    Ok(forward) => network::status(want, Some(forward), None),
                    Err(error) => network::status(want, None, Some(error)),
                },
            });
        }
        if matches!(self.link, Link::Up(_)) {
            self.ports.applied = Some(wanted.to_vec());
            self.ports.status = status;
            if self.ports.status.iter().any(|port| port.error.is_some()) {
                self.retry_at = Some(Instant::now() + PORT_RETRY);
            }
        }
    }

    /// Adds one forward; the one that is there afterwards and was not before is it.
    async fn add_forward(&mut self, want: &PortForward) -> Result<Forward, String> {
        let lost = || "the VMM did not answer".to_owned();
        let command = network::add_command(want)?;
        let before = self.forwards().await.ok_or_else(lost)?;
        let answer = self.monitor_command(command).await.ok_or_else(lost)?;
        if !answer.trim().is_empty() {
            let privileged = self.process.as_ref().is_some_and(Process::may_bind_low_ports);
            let first_free = self.host.first_free_port;
            return Err(network::explain(want, &answer, privileged, first_free));
        }
        let after = self.forwards().await.ok_or_else(lost)?;
        after.into_iter().find(|f| !before.contains(f)).ok_or_else(lost)
    }

    async fn forwards(&mut self) -> Option<Vec<Forward>> {
        Some(parse_usernet(&self.monitor_command("info usernet".to_owned()).await?))
    }

    async fn monitor_command(&mut self, line: String) -> Option<String> {
        let answer = self
            .call("human-monitor-command", json!({"command-line": line}))
            .await?;
        Some(answer.as_str().unwrap_or_default().to_owned())
    }
}

fn is_ready(chardevs: &Value) -> bool {
    chardevs
        .as_array()
        .into_iter()
        .flatten()
        .any(|device| device["label"] == READY && device["frontend-open"].as_bool() == Some(true))
}

/// The guest says what it likes: only what looks like a boot id is taken for one.
fn is_boot_id(text: &str) -> bool {
    vmlet_init::channel::parse_boot_id(text).is_some() && text.len() == 36
}
