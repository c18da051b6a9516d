//! A small client for QEMU's machine protocol (docs/interop/qmp-spec.txt of QEMU).
//!
//! It knows no schema: unknown events and fields pass by. A line is bounded, a call has a deadline,
//! and after any error but [`QmpError::Refused`] the connection is of no more use.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

/// The longest line accepted: a whole console ring in base64 and some more.
const MAX_LINE: usize = 4 << 20;
/// Bytes of buffer that a quiet connection keeps.
const IDLE_BUFFER: usize = 4 << 10;
/// Events kept while a call waits for its answer; the oldest are dropped.
const MAX_EVENTS: usize = 256;

/// Why a call to QEMU failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket cannot be reached, or broke.
    #[error("its monitor socket: {0}")]
    Io(#[from] std::io::Error),
    /// The other end closed the connection.
    #[error("it closed the connection of its monitor")]
    Closed,
    /// No answer in time.
    #[error("it did not answer {command} within {} s", .after.as_secs())]
    Timeout {
        /// What was asked.
        command: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// What came is not the protocol.
    #[error("its monitor sent what is not QMP: {0}")]
    Malformed(String),
    /// QEMU understood and refused.
    #[error("it refused {command}: {message}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// QEMU's words.
        message: String,
    },
}

impl QmpError {
    /// Whether the connection can be used no more.
    pub fn breaks_connection(&self) -> bool {
        !matches!(self, QmpError::Refused { .. })
    }
}

/// Something that QEMU tells without being asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `SHUTDOWN`, `VSERPORT_CHANGE`, ...
    pub name: String,
    /// Its `data`; null if it has none.
    pub data: Value,
}

/// One connection to one QEMU. QEMU serves one at a time.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    scanned: usize,
    events: VecDeque<Event>,
    next_id: u64,
    timeout: Duration,
    /// Until then a call has until then.
    patient_until: Instant,
}

enum Message {
    Greeting,
    Event(Event),
    Answer {
        id: Option<u64>,
        result: Result<Value, String>,
    },
}

impl Qmp {
    /// Waits on a new connection for the greeting, and negotiates. That and the first calls get up to `patience` in all: one
    /// that has just begun may stand still again after its first word. Later calls get `timeout` each.
    ///
    /// # Errors
    /// Every [`QmpError`]; a listener that nobody accepts from is a [`QmpError::Timeout`].
    pub async fn open(stream: UnixStream, patience: Duration, timeout: Duration) -> Result<Qmp, QmpError> {
        let mut qmp = Qmp {
            stream,
            buffer: Vec::new(),
            scanned: 0,
            events: VecDeque::new(),
            next_id: 0,
            timeout,
            patient_until: Instant::now() + patience,
        };
        let greeted = tokio::time::timeout(patience, qmp.greeting()).await;
        greeted.map_err(|_| QmpError::Timeout {
            command: "with a greeting",
            after: patience,
        })??;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    async fn greeting(&mut self) -> Result<(), QmpError> {
        match self.message().await? {
            Message::Greeting => Ok(()),
            _ => Err(QmpError::Malformed("no greeting".to_owned())),
        }
    }

    /// Asks one thing and waits for its answer. Events that come meanwhile are kept for [`Qmp::next_event`].
    ///
    /// # Errors
    /// [`QmpError`]; all but [`QmpError::Refused`] end the use of this connection.
    pub async fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let patience = self.patient_until.saturating_duration_since(Instant::now());
        let after = self.timeout.max(patience);
        tokio::time::timeout(after, self.exchange(command, arguments))
            .await
            .map_err(|_| QmpError::Timeout { command, after })?
    }

    async fn exchange(&mut self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        self.next_id += 1;
        let id = self.next_id;
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).await?;
        loop {
            match self.message().await? {
                Message::Event(event) => self.keep(event),
                // An answer to a call that was given up.
                Message::Answer { id: other, .. } if other != Some(id) => {}
                Message::Answer { result, .. } => {
                    return result.map_err(|message| QmpError::Refused { command, message });
                }
                Message::Greeting => return Err(QmpError::Malformed("a second greeting".to_owned())),
            }
        }
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The next event. May be cancelled and called again: nothing is lost.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next_event(&mut self) -> Result<Event, QmpError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        loop {
            if let Message::Event(event) = self.message().await? {
                return Ok(event);
            }
        }
    }

    async fn message(&mut self) -> Result<Message, QmpError> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=self.scanned + at).collect();
                self.scanned = 0;
                // A burst must not be kept for life: there are many machines, and most are quiet.
                if self.buffer.is_empty() {
                    self.buffer.shrink_to(IDLE_BUFFER);
                }
                return parse(&line);
            }
            self.scanned = self.buffer.len();
            if self.scanned > MAX_LINE {
                return Err(QmpError::Malformed(format!("a line longer than {MAX_LINE} bytes")));
            }
            self.buffer.reserve(4096);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(QmpError::Closed);
            }
        }
    }
}

fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let mut value: Value = serde_json::from_slice(line).map_err(|error| QmpError::Malformed(error.to_string()))?;
    if value.get("QMP").is_some() {
        return Ok(Message::Greeting);
    }
    if let Some(name) = value.get("event").and_then(Value::as_str).map(str::to_owned) {
        let data = value.get_mut("data").map_or(Value::Null, Value::take);
        return Ok(Message::Event(Event { name, data }));
    }
    let id = value.get("id").and_then(Value::as_u64);
    if let Some(result) = value.get_mut("return") {
        return Ok(Message::Answer {
            id,
            result: Ok(result.take()),
        });
    }
    match value.pointer("/error/desc").and_then(Value::as_str) {
        Some(text) => Ok(Message::Answer {
            id,
            result: Err(text.to_owned()),
        }),
        None => Err(QmpError::Malformed("neither event nor answer".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    const GREETING: &str = "{\"QMP\":{\"version\":{},\"capabilities\":[]}}\n";

    /// A QEMU that greets, grants capabilities (id 1), and then says `lines` after the next request.
    async fn scripted(lines: Vec<u8>) -> (tempfile::TempDir, Result<Qmp, QmpError>) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("binds");
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client");
            let mut stream = BufReader::new(stream);
            let mut request = String::new();
            let _ = stream.write_all(GREETING.as_bytes()).await;
            let _ = stream.read_line(&mut request).await;
            let _ = stream.write_all(b"{\"return\":{},\"id\":1}\n").await;
            let _ = stream.read_line(&mut request).await;
            let _ = stream.write_all(&lines).await;
            // Held open until the client goes.
            let _ = stream.read_line(&mut request).await;
        });
        let short = Duration::from_millis(200);
        let stream = UnixStream::connect(&path).await.expect("connects");
        let mut qmp = Qmp::open(stream, Duration::from_secs(5), short).await;
        if let Ok(qmp) = &mut qmp {
            // Its start is long ago.
            qmp.patient_until = Instant::now();
        }
        (dir, qmp)
    }

    async fn ask(lines: &[u8]) -> (Result<Value, QmpError>, Qmp, tempfile::TempDir) {
        let (dir, qmp) = scripted(lines.to_vec()).await;
        let mut qmp = qmp.expect("connects");
        (qmp.execute("query-status", json!({})).await, qmp, dir)
    }

    #[tokio::test]
    async fn events_and_late_answers_before_an_answer_disturb_nothing() {
        let (answer, mut qmp, _dir) = ask(
            b"{\"event\":\"STOP\",\"timestamp\":{}}\n{\"return\":7,\"id\":1}\n{\"return\":{\"status\":\"running\"},\"id\":2}\n{\"event\":\"RESET\",\"data\":{\"guest\":true}}\n",
        )
        .await;
        assert_eq!(answer.expect("an answer")["status"], "running");
        assert_eq!(qmp.next_event().await.expect("kept").name, "STOP");
        let reset = qmp.next_event().await.expect("read");
        assert_eq!((reset.name.as_str(), &reset.data["guest"]), ("RESET", &json!(true)));
    }

    #[tokio::test]
    async fn a_refusal_leaves_the_connection_usable() {
        let (answer, _qmp, _dir) =
            ask(b"{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such thing\"},\"id\":2}\n").await;
        let error = answer.expect_err("refused");
        assert!(!error.breaks_connection());
        assert_eq!(error.to_string(), "it refused query-status: no such thing");
    }

    #[tokio::test]
    async fn no_answer_is_a_timeout() {
        let (answer, _qmp, _dir) = ask(b"{\"event\":\"STOP\"}\n").await;
        assert!(matches!(answer, Err(QmpError::Timeout { .. })), "{answer:?}");
    }

    #[tokio::test]
    async fn what_is_not_the_protocol_is_an_error() {
        for line in [
            &b"hello\n"[..],
            b"{}\n",
            b"[1]\n",
            b"{\"error\":3,\"id\":2}\n",
            b"\xff\xfe\n",
        ] {
            let (answer, _qmp, _dir) = ask(line).await;
            assert!(matches!(answer, Err(QmpError::Malformed(_))), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn an_endless_line_is_cut_off() {
        let (_dir, qmp) = scripted(vec![b'x'; MAX_LINE + (1 << 20)]).await;
        let mut qmp = qmp.expect("connects");
        qmp.timeout = Duration::from_secs(20);
        let answer = qmp.execute("query-status", json!({})).await;
        assert!(matches!(answer, Err(QmpError::Malformed(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn a_listener_that_nobody_serves_is_a_timeout() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("qmp");
        let _listener = UnixListener::bind(&path).expect("binds");
        let short = Duration::from_millis(50);
        let stream = UnixStream::connect(&path).await.expect("connects");
        let qmp = Qmp::open(stream, short, short).await;
        assert!(matches!(qmp, Err(QmpError::Timeout { .. })), "{qmp:?}");
    }

    /// A QEMU that answers `answered` requests after its greeting and then is silent, asked once.
    async fn silent_after(answered: u64, patience: Duration) -> QmpError {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        tokio::spawn(async move {
            let mut stream = BufReader::new(theirs);
            let mut request = String::new();
            let _ = stream.write_all(GREETING.as_bytes()).await;
            for id in 1..=answered {
                let _ = stream.read_line(&mut request).await;
                let answer = format!("{{\"return\":{{}},\"id\":{id}}}\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            // Held open until the client goes.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let asked = async {
            let mut qmp = Qmp::open(ours, patience, Duration::from_millis(1)).await?;
            qmp.execute("query-status", json!({})).await
        };
        asked.await.expect_err("no answer")
    }

    #[tokio::test]
    async fn the_first_calls_of_a_start_have_the_patience_of_a_start() {
        let patience = Duration::from_millis(300);
        for (answered, silent) in [(0, "qmp_capabilities"), (1, "query-status")] {
            let begun = Instant::now();
            match silent_after(answered, patience).await {
                QmpError::Timeout { command, .. } => assert_eq!(command, silent),
                other => panic!("{other}"),
            }
            assert!(begun.elapsed() >= patience, "{silent} was given up at once");
        }
    }
}
