//! Requests, answers, and the lines they travel in.

use serde::{Deserialize, Serialize};

/// The longest request line, in bytes, without its newline.
pub const MAX_REQUEST: usize = 256 << 10;
/// The longest answer line, in bytes, without its newline.
pub const MAX_ANSWER: usize = 16 << 10;

/// What a host asks. One JSON line each.
///
/// A host that just connected sends an empty line first: it ends whatever an earlier client left
/// half-written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Request {
    /// `{"hello":true}`: who are you, and how are you?
    Hello {
        /// Always true.
        hello: bool,
    },
    /// `{"shutdown":{"graceSeconds":30}}`: end, and then power off.
    Shutdown {
        /// How.
        shutdown: Shutdown,
    },
    /// `{"authorizedKeys":["ssh-ed25519 ..."]}`: these are root's keys from now on.
    AuthorizedKeys {
        /// The lines, replacing those of the configuration.
        #[serde(rename = "authorizedKeys")]
        authorized_keys: Vec<String>,
    },
}

/// How to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shutdown {
    /// Seconds until what still runs is killed.
    pub grace_seconds: u64,
}

impl Request {
    /// Who are you, and how are you?
    pub fn hello() -> Request {
        Request::Hello { hello: true }
    }

    /// End within this many seconds, then power off.
    pub fn shutdown(grace_seconds: u64) -> Request {
        Request::Shutdown {
            shutdown: Shutdown { grace_seconds },
        }
    }
}

/// What the guest answers to every request: its state after following it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The kernel's boot id, as it prints it: another one means another boot.
    pub boot_id: String,
    /// How the guest is.
    pub state: GuestState,
    /// Which init runs.
    pub init: ChosenInit,
    /// What went wrong without being fatal (a file system that could not be grown).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What was wrong with the request, if it could not be followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the steps of the boot were done.
    #[serde(default)]
    pub timings: Timings,
}

/// How a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestState {
    /// The workload, or the image's init, runs.
    Running,
    /// It has been asked to end.
    Stopping,
}

/// Which init runs in a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChosenInit {
    /// The image's own.
    Image,
    /// `vmlet-init`, supervising the entrypoint.
    Entrypoint,
}

/// Milliseconds since the kernel started, by its boot clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Timings {
    /// `vmlet-init` got control.
    pub init: u64,
    /// The modules were loaded.
    pub modules: u64,
    /// The root was mounted (and grown).
    pub root: u64,
    /// The workload was started.
    pub ready: u64,
}

/// A request as a line, newline included.
pub fn encode_request(request: &Request) -> Vec<u8> {
    line(serde_json::to_vec(request))
}

/// An answer as a line, newline included.
pub fn encode_answer(answer: &Answer) -> Vec<u8> {
    line(serde_json::to_vec(answer))
}

/// Reads a request from a line without its newline.
///
/// # Errors
/// Says what is wrong with the line.
pub fn decode_request(line: &[u8]) -> Result<Request, String> {
    match serde_json::from_slice(line) {
        Ok(request) => Ok(request),
        Err(error) => Err(format!("not a request this guest knows: {error}")),
    }
}

/// Reads an answer from a line without its newline.
///
/// # Errors
/// Says what is wrong with the line. It comes from the guest: trust nothing about it.
pub fn decode_answer(line: &[u8]) -> Result<Answer, String> {
    serde_json::from_slice(line).map_err(|error| format!("not an answer of a vmlet guest: {error}"))
}

// Structs of strings, numbers and lists always have a JSON form.
fn line(json: serde_json::Result<Vec<u8>>) -> Vec<u8> {
    let mut line = json.unwrap_or_default();
    line.push(b'\n');
    line
}

/// Cuts a stream of bytes into lines, and never holds more than one line of the longest length.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    longest: usize,
    skipping: bool,
}

/// A line was longer than allowed; it was skipped to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {0} bytes")]
pub struct LineTooLong(pub usize);

impl Lines {
    /// Lines of at most `longest` bytes ([`MAX_REQUEST`] in the guest, [`MAX_ANSWER`] on the host).
    pub fn new(longest: usize) -> Lines {
        Lines {
            buffer: Vec::new(),
            longest,
            skipping: false,
        }
    }

    /// Takes bytes, gives the lines that they complete (empty lines are left out).
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Result<Vec<u8>, LineTooLong>> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, ends) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            if self.skipping || self.buffer.len() + text.len() > self.longest {
                self.buffer = Vec::new();
                self.skipping = true;
            } else {
                self.buffer.extend_from_slice(text);
            }
            if ends {
                let line = std::mem::take(&mut self.buffer);
                if std::mem::take(&mut self.skipping) {
                    lines.push(Err(LineTooLong(self.longest)));
                } else if !line.is_empty() {
                    lines.push(Ok(line));
                }
            }
        }
        lines
    }

    /// Forgets a half line: its sender is gone.
    pub fn clear(&mut self) {
        self.buffer = Vec::new();
        self.skipping = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_documented_form() {
        assert_eq!(encode_request(&Request::hello()), b"{\"hello\":true}\n");
        assert_eq!(
            encode_request(&Request::shutdown(30)),
            b"{\"shutdown\":{\"graceSeconds\":30}}\n"
        );
        let keys = Request::AuthorizedKeys {
            authorized_keys: vec!["k".into()],
        };
        assert_eq!(encode_request(&keys), b"{\"authorizedKeys\":[\"k\"]}\n");
        for request in [Request::hello(), Request::shutdown(0), keys] {
            let line = encode_request(&request);
            assert_eq!(decode_request(&line[..line.len() - 1]), Ok(request));
        }
        assert!(decode_request(b"{\"dance\":1}").is_err());
        assert!(decode_request(b"\xff").is_err());
    }

    #[test]
    fn an_answer_of_a_newer_guest_is_read() {
        let line = br#"{"bootId":"x","state":"Running","init":"Image","dance":[1]}"#;
        let answer = decode_answer(line).expect("an answer");
        assert_eq!((answer.state, answer.init), (GuestState::Running, ChosenInit::Image));
        let again = encode_answer(&answer);
        assert_eq!(decode_answer(&again), Ok(answer));
    }

    #[test]
    fn lines_come_out_however_they_are_cut() {
        let mut lines = Lines::new(8);
        assert_eq!(lines.push(b"a"), []);
        assert_eq!(lines.push(b"b\n\nc\nd"), [Ok(b"ab".to_vec()), Ok(b"c".to_vec())]);
        lines.clear();
        assert_eq!(lines.push(b"e\n"), [Ok(b"e".to_vec())]);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_takes_no_memory() {
        let mut lines = Lines::new(4);
        for _ in 0..100 {
            assert_eq!(lines.push(b"xxx"), []);
            assert!(lines.buffer.capacity() <= 16);
        }
        assert_eq!(lines.push(b"\nok\n"), [Err(LineTooLong(4)), Ok(b"ok".to_vec())]);
        assert_eq!(
            lines.push(b"1234\n12345\n"),
            [Ok(b"1234".to_vec()), Err(LineTooLong(4))]
        );
    }
}
