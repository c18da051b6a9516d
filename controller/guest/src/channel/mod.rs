//! What host and guest say to each other over virtio-serial.
//!
//! Nothing in a virtio-serial port is buffered for an absent reader, and what a dead client never
//! read is lost. So there are three ports, each with the one use that survives that:
//!
//! * [`READY_PORT`] carries no bytes. It is *open* while the guest is ready.
//! * [`EXIT_PORT`] is a ring buffer in the VMM: [`ExitRecord`]s of fixed size, written several times.
//! * [`CONTROL_PORT`] is a socket on which the guest only answers: one JSON line per request.

mod record;
mod wire;

pub use record::{ExitReason, ExitRecord, RECORD_COPIES, RECORD_SIZE, parse_boot_id};
pub use wire::{
    Answer, ChosenInit, GuestState, LineTooLong, Lines, MAX_ANSWER, MAX_REQUEST, Request, Shutdown, Timings,
    decode_answer, decode_request, encode_answer, encode_request,
};

/// Held open by the guest while its workload (or the image's init) runs.
pub const READY_PORT: &str = "dev.vmlet.ready";
/// Where the guest leaves its exit records.
pub const EXIT_PORT: &str = "dev.vmlet.exit";
/// Where the guest answers its host.
pub const CONTROL_PORT: &str = "dev.vmlet.control";

/// The signal name of a number, for messages (`SIGKILL`); other numbers stay numbers.
pub fn signal_name(signal: i32) -> String {
    let names = [
        (libc::SIGHUP, "SIGHUP"),
        (libc::SIGINT, "SIGINT"),
        (libc::SIGQUIT, "SIGQUIT"),
        (libc::SIGILL, "SIGILL"),
        (libc::SIGABRT, "SIGABRT"),
        (libc::SIGBUS, "SIGBUS"),
        (libc::SIGFPE, "SIGFPE"),
        (libc::SIGKILL, "SIGKILL"),
        (libc::SIGUSR1, "SIGUSR1"),
        (libc::SIGSEGV, "SIGSEGV"),
        (libc::SIGUSR2, "SIGUSR2"),
        (libc::SIGPIPE, "SIGPIPE"),
        (libc::SIGALRM, "SIGALRM"),
        (libc::SIGTERM, "SIGTERM"),
        (libc::SIGWINCH, "SIGWINCH"),
    ];
    match names.iter().find(|(number, _)| *number == signal) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("signal {signal}"),
    }
}
