//! The guest's end of the control port.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmlet_init::channel::{
    Answer, CONTROL_PORT, ChosenInit, GuestState, Lines, MAX_REQUEST, Request, decode_request, encode_answer,
};

use super::files::Root;
use super::{Guest, log, ports, prepare};

/// The most that is kept for a host that does not read, in bytes. Answers are state: a lost one is asked for again.
const MAX_PENDING: usize = 64 << 10;

/// The control port and what has been read from it.
pub struct Control {
    port: Option<File>,
    lines: Lines,
    pending: Vec<u8>,
}

/// What the supervisor has to do after requests.
#[derive(Default)]
pub struct Asked {
    /// Shut down with this grace, in milliseconds.
    pub shutdown: Option<u64>,
}

impl Control {
    /// Opens the port. Without one there is nobody to answer, and that is fine.
    pub fn open() -> Control {
        Control {
            port: ports::open(CONTROL_PORT),
            lines: Lines::new(MAX_REQUEST),
            pending: Vec::new(),
        }
    }

    /// The port, to be watched edge-triggered: while nobody is connected it is always "hung up".
    pub fn port(&self) -> Option<&File> {
        self.port.as_ref()
    }

    /// Reads what came, answers it.
    pub fn serve(&mut self, guest: &Guest, init: ChosenInit, stopping: bool) -> Asked {
        let mut asked = Asked::default();
        let Some(mut port) = self.port.as_ref() else {
            return asked;
        };
        // Before reading: what is read may be the next client's already, whose connection the kernel has not
        // been told of yet. Its answer waits for that.
        if hung_up(port) {
            self.lines.clear();
            self.pending.clear();
        }
        let mut buffer = [0u8; 4096];
        loop {
            match port.read(&mut buffer) {
                // Nobody is connected (a virtio port then reads as ended).
                Ok(0) => break,
                Ok(length) => {
                    for line in self.lines.push(&buffer[..length]) {
                        let request = line.map_err(|e| e.to_string()).and_then(|line| decode_request(&line));
                        let error = request.and_then(|request| follow(request, &mut asked)).err();
                        let state = if stopping || asked.shutdown.is_some() {
                            GuestState::Stopping
                        } else {
                            GuestState::Running
                        };
                        let answer = Answer {
                            boot_id: guest.boot_id.clone(),
                            state,
                            init,
                            warnings: guest.warnings.clone(),
                            error,
                            timings: guest.timings,
                        };
                        self.pending.extend(encode_answer(&answer));
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if self.pending.len() > MAX_PENDING {
            self.pending.clear();
        }
        while !self.pending.is_empty() {
            match port.write(&self.pending) {
                Ok(length) => drop(self.pending.drain(..length)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        asked
    }
}

fn follow(request: Request, asked: &mut Asked) -> Result<(), String> {
    match request {
        Request::Hello { .. } => Ok(()),
        Request::Shutdown { shutdown } => {
            asked.shutdown = Some(shutdown.grace_seconds.min(86_400) * 1000);
            Ok(())
        }
        Request::AuthorizedKeys { authorized_keys } => {
            let written = Root::open("/").and_then(|root| prepare::authorized_keys(&root, &authorized_keys));
            written.map_err(|error| {
                log::error(&format!("authorized_keys: {error}"));
                error.to_string()
            })
        }
    }
}

fn hung_up(port: &File) -> bool {
    let mut polled = [PollFd::new(port, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().contains(PollFlags::HUP)
}
