//! `vmlet console`: typing at a VM's interactive console.
//!
//! One loop over four descriptors and signals, none of which it waits for alone: a guest that does not read, a
//! pipe that nobody empties and a terminal that goes away hold up nothing else. Bytes of one direction are
//! read only when the ones before them are written, so there is never more than a piece of either in memory.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use kube::ResourceExt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use vmlet_crds::VirtualMachine;
use vmlet_machines::{Terminal, TerminalError};

use crate::cli::Console;
use crate::vm;

/// Ctrl-].
const DETACH: u8 = 0x1d;
/// Most bytes on their way at once in one direction: a pipe that polls as writable takes as many at once.
const PIECE: usize = 4096;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The detach key, or the end of the input and then silence.
    Left,
    /// The machine's VMM is gone.
    MachineStopped,
    /// Whoever read the output went away.
    NobodyReads,
    /// A signal to this process.
    Signal(u8),
}

/// Connects the standard input and output with the console.
pub async fn console(args: Console) -> Result<ExitCode> {
    let vm = vm::get(&args.vm).await?;
    let name = vm.name_any();
    let uid = vm.uid().unwrap_or_default();
    let terminal = Terminal::open(&args.data_dir.join("machines"), &uid)
        .map_err(|error| anyhow!("\"{name}\" has no console here: {}", explained(&args, &vm, error)))?;
    let signals = signals().context("signals")?;
    let linger = Duration::from_secs(args.linger);
    let named = name.clone();
    let end = tokio::task::spawn_blocking(move || attach(&terminal, &signals, &named, linger)).await??;
    Ok(match end {
        End::Left | End::NobodyReads => ExitCode::SUCCESS,
        End::MachineStopped => {
            eprintln!("vmlet: \"{name}\" has stopped");
            ExitCode::FAILURE
        }
        End::Signal(number) => ExitCode::from(128_u8.saturating_add(number)),
    })
}

/// The cause, and what to do about it.
fn explained(args: &Console, vm: &VirtualMachine, error: TerminalError) -> String {
    match error {
        TerminalError::Absent { .. } => vm::nothing_below(vm, &args.data_dir),
        TerminalError::NotRunning => match vm::not_running(vm) {
            Some(why) => format!("it does not run: {why}"),
            None => "it does not run any more".to_owned(),
        },
        TerminalError::StartedByOlder => format!(
            "{error}. To restart it: kubectl patch vm {} -n {} --type=merge -p '{{\"spec\":{{\"restartedAt\":\"'$(date -u +%FT%TZ)'\"}}}}'",
            vm.name_any(),
            vm.namespace().unwrap_or_default()
        ),
        TerminalError::Io { ref source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            format!("{error} (the data directory belongs to the agent's user: run this as that user)")
        }
        error => error.to_string(),
    }
}

/// A socket from which the numbers of signals are read that would end this process.
fn signals() -> io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
    ];
    for kind in kinds {
        let (mut signals, mut sender) = (signal(kind)?, sender.try_clone()?);
        let number = u8::try_from(kind.as_raw_value()).unwrap_or_default();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                // One byte fits, or so many are under way that this one makes no difference.
                let _ = sender.write(&[number]);
            }
        });
    }
    Ok(receiver)
}

/// The terminal as it was, put back when this is dropped.
struct Raw(Termios);

impl Raw {
    /// Every key goes to the guest from now on.
    fn enter() -> io::Result<Raw> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Not `Drain`: a terminal that shows nothing any more would be waited for.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn attach(terminal: &Terminal, signals: &UnixStream, name: &str, linger: Duration) -> Result<End> {
    terminal.stream.set_nonblocking(true)?;
    let is_terminal = io::stdin().is_terminal();
    let raw = if is_terminal {
        eprintln!("Connected to the console of \"{name}\". Press Enter for a prompt, and Ctrl-] to leave.");
        Some(Raw::enter().context("the terminal")?)
    } else {
        None
    };
    let mut session = Session::new(is_terminal, linger);
    let end = session.run(io::stdin(), io::stdout(), &terminal.stream, signals);
    if raw.is_some() {
        drop(raw);
        eprintln!();
    }
    end.context("console")
}

/// What is on its way between here and the guest.
struct Session {
    /// The input is a terminal: it has a detach key.
    is_terminal: bool,
    /// How long the guest must have been silent after the end of the input.
    linger: Duration,
    to_guest: Vec<u8>,
    to_user: Vec<u8>,
    input_ended: bool,
    /// When something last moved.
    moved: Instant,
}

impl Session {
    fn new(is_terminal: bool, linger: Duration) -> Session {
        Session {
            is_terminal,
            linger,
            to_guest: Vec::new(),
            to_user: Vec::new(),
            input_ended: false,
            moved: Instant::now(),
        }
    }

    /// Until one end ends. The guest's stream does not block; the others are read and written when they are ready.
    fn run(
        &mut self,
        input: impl Read + AsFd,
        output: impl Write + AsFd,
        guest: &UnixStream,
        signals: &UnixStream,
    ) -> io::Result<End> {
        let (mut input, mut output, mut guest, mut signals) = (input, output, guest, signals);
        let mut piece = [0_u8; PIECE];
        loop {
            let left = match self.time_left() {
                Some(Duration::ZERO) => return Ok(End::Left),
                left => left.and_then(|left| Timespec::try_from(left).ok()),
            };
            // What nothing is wanted of is left out: that it hung up would be told again and again.
            let wanted = [
                PollFlags::IN,
                flag(!self.input_ended && self.to_guest.is_empty(), PollFlags::IN),
                flag(self.to_user.is_empty(), PollFlags::IN) | flag(!self.to_guest.is_empty(), PollFlags::OUT),
                flag(!self.to_user.is_empty(), PollFlags::OUT),
            ];
            let [signalled, typed, told, shown] = {
                let all = [signals.as_fd(), input.as_fd(), guest.as_fd(), output.as_fd()];
                let polled = all.iter().zip(wanted).filter(|(_, flags)| !flags.is_empty());
                let mut polled: Vec<PollFd> = polled.map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, flags)).collect();
                match poll(&mut polled, left.as_ref()) {
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                }
                let mut found = polled.iter();
                wanted.map(|flags| match flags.is_empty() {
                    true => PollFlags::empty(),
                    false => found.next().map_or(PollFlags::empty(), PollFd::revents),
                })
            };
            if !signalled.is_empty() {
                let mut number = [0_u8];
                signals.read_exact(&mut number)?;
                return Ok(End::Signal(number[0]));
            }
            if !shown.is_empty() {
                match output
                    .write(&self.to_user)
                    .and_then(|count| output.flush().map(|()| count))
                {
                    Ok(count) => drop(self.to_user.drain(..count)),
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::NobodyReads),
                    Err(error) if again(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            if !told.is_empty() {
                if !self.to_guest.is_empty() {
                    match guest.write(&self.to_guest) {
                        Ok(count) => drop(self.to_guest.drain(..count)),
                        Err(error) if again(&error) => {}
                        Err(_) => return Ok(End::MachineStopped),
                    }
                    self.moved = Instant::now();
                }
                if self.to_user.is_empty() {
                    match guest.read(&mut piece) {
                        Ok(0) => return Ok(End::MachineStopped),
                        Ok(count) => self.to_user.extend_from_slice(&piece[..count]),
                        Err(error) if again(&error) => continue,
                        Err(_) => return Ok(End::MachineStopped),
                    }
                    self.moved = Instant::now();
                }
            }
            if !typed.is_empty() {
                match input.read(&mut piece) {
                    Ok(count) => {
                        if self.take_input(&piece[..count]) {
                            return Ok(End::Left);
                        }
                    }
                    Err(error) if again(&error) => {}
                    // A terminal that went away.
                    Err(_) => return Ok(End::Left),
                }
            }
        }
    }

    /// Takes what was read; true: the session ends here.
    fn take_input(&mut self, bytes: &[u8]) -> bool {
        self.moved = Instant::now();
        self.input_ended = bytes.is_empty();
        match bytes.iter().position(|byte| self.is_terminal && *byte == DETACH) {
            Some(_) => true,
            None => {
                self.to_guest.extend_from_slice(bytes);
                self.is_terminal && bytes.is_empty()
            }
        }
    }

    /// After the end of the input: how long the guest may still be silent.
    fn time_left(&self) -> Option<Duration> {
        let idle = self.input_ended && self.to_guest.is_empty() && self.to_user.is_empty();
        idle.then(|| self.linger.saturating_sub(self.moved.elapsed()))
    }
}

fn flag(when: bool, flag: PollFlags) -> PollFlags {
    if when { flag } else { PollFlags::empty() }
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session between sockets: its input, what it shows, the guest, and its signals; then how it ended.
    fn session(linger: Duration) -> ([UnixStream; 4], std::thread::JoinHandle<io::Result<End>>) {
        let pair = || UnixStream::pair().expect("a pair");
        let [input, output, guest, signals] = [pair(), pair(), pair(), pair()];
        guest.1.set_nonblocking(true).expect("sets");
        let thread =
            std::thread::spawn(move || Session::new(false, linger).run(input.1, output.1, &guest.1, &signals.1));
        ([input.0, output.0, guest.0, signals.0], thread)
    }

    fn expect(stream: &mut UnixStream, text: &str) {
        let mut read = vec![0; text.len()];
        stream.read_exact(&mut read).expect("reads");
        assert_eq!(String::from_utf8_lossy(&read), text);
    }

    #[test]
    fn a_pipe_is_sent_whole_and_the_answer_comes_after_its_end() {
        let ([mut input, mut output, mut guest, _signals], thread) = session(Duration::from_millis(50));
        // The detach key is a byte like others here.
        input.write_all(b"echo \x1d hi\n").expect("types");
        drop(input);
        expect(&mut guest, "echo \x1d hi\n");
        guest.write_all(b"hi\r\n").expect("answers");
        expect(&mut output, "hi\r\n");
        assert_eq!(thread.join().expect("ends").expect("well"), End::Left);
    }

    #[test]
    fn the_end_of_the_machine_comes_after_its_last_words() {
        let ([_input, mut output, mut guest, _signals], thread) = session(Duration::ZERO);
        guest.write_all(b"Power down\r\n").expect("says");
        drop(guest);
        expect(&mut output, "Power down\r\n");
        assert_eq!(thread.join().expect("ends").expect("well"), End::MachineStopped);
    }

    #[test]
    fn a_signal_ends_it_although_nobody_reads_what_the_guest_floods() {
        let ([_input, _output, mut guest, mut signals], thread) = session(Duration::ZERO);
        let flood = std::thread::spawn(move || while guest.write(&[b'x'; 8192]).is_ok() {});
        signals.write_all(&[15]).expect("signals");
        assert_eq!(thread.join().expect("ends").expect("well"), End::Signal(15));
        flood.join().expect("ends with the session");
    }

    #[test]
    fn who_reads_no_more_ends_it() {
        let ([_input, output, mut guest, _signals], thread) = session(Duration::ZERO);
        drop(output);
        guest.write_all(b"hello").expect("says");
        assert_eq!(thread.join().expect("ends").expect("well"), End::NobodyReads);
    }

    #[test]
    fn the_detach_key_is_one_on_a_terminal_only() {
        let take = |is_terminal, bytes: &[u8]| Session::new(is_terminal, Duration::ZERO).take_input(bytes);
        assert!(take(true, b"ab\x1dcd"));
        assert!(!take(true, b"ab"));
        assert!(!take(false, b"\x1d"));
        // The end of a terminal is one of the session, that of a pipe is not.
        assert!(take(true, b""));
        assert!(!take(false, b""));
    }
}
