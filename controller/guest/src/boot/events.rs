//! What a supervisor sleeps on: signals, one timer, and the control port.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, OwnedFd};

/// Why the supervisor is awake.
pub enum Wake {
    /// The armed time is over.
    Timer,
    /// These signals came.
    Signals(Vec<i32>),
    /// Something that is watched changed.
    Other,
}

/// The sources.
pub struct Events {
    epoll: OwnedFd,
    signals: File,
    deadline: Option<Instant>,
}

const SIGNALS: u64 = 1;
const WATCHED: u64 = 2;

impl Events {
    /// Blocks these signals and collects them from now on.
    pub fn open(signals: &[i32]) -> io::Result<Events> {
        // SAFETY: the set is initialised by sigemptyset; the descriptor is checked and is ours alone.
        let signals = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, *signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => return Err(io::Error::last_os_error()),
                descriptor => File::from_raw_fd(descriptor),
            }
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &signals,
            epoll::EventData::new_u64(SIGNALS),
            epoll::EventFlags::IN,
        )?;
        Ok(Events {
            epoll,
            signals,
            deadline: None,
        })
    }

    /// Wakes at every change of this descriptor, and only at changes: a virtio port without a
    /// client is hung up all the time.
    pub fn watch(&self, descriptor: impl AsFd) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            descriptor,
            epoll::EventData::new_u64(WATCHED),
            flags,
        )?)
    }

    /// Sets the one timer.
    pub fn arm(&mut self, milliseconds: u64) {
        self.deadline = Some(Instant::now() + Duration::from_millis(milliseconds));
    }

    /// Sleeps until something happens.
    pub fn next(&mut self) -> Wake {
        let left = self.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            self.deadline = None;
            return Wake::Timer;
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 4];
        let count = epoll::wait(&self.epoll, &mut events, timeout.as_ref()).unwrap_or(0);
        match events.iter().take(count).any(|event| event.data.u64() == SIGNALS) {
            true => Wake::Signals(self.pending()),
            false => Wake::Other,
        }
    }

    fn pending(&mut self) -> Vec<i32> {
        let mut signals = Vec::new();
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        while self.signals.read_exact(&mut info).is_ok() {
            // `ssi_signo` is the first field.
            signals.push(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]));
        }
        signals
    }
}
