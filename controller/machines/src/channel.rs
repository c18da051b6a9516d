//! Talking to `vmlet-init` over the control port: one connection per question.
//!
//! The guest only answers, and every answer is its whole state, so a question that was lost is asked
//! again and an answer to an older question does no harm.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmlet_init::channel::{Answer, GuestState, Lines, MAX_ANSWER, Request, decode_answer, encode_request};

use crate::directory::{CONTROL, MachineDir};

/// Why a guest did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket cannot be reached, or broke.
    #[error("the guest's control socket: {0}")]
    Io(#[from] io::Error),
    /// No answer in time: no vmlet-init, or it is busy.
    #[error("the guest did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The guest sent something else.
    #[error("the guest answered {0}")]
    Malformed(String),
    /// The guest did not follow.
    #[error("the guest refused: {0}")]
    Refused(String),
}

/// Asks one thing and waits for the answer.
///
/// # Errors
/// [`ChannelError`]. What the guest sends is bounded and trusted in nothing.
pub async fn ask(dir: &MachineDir, request: &Request, within: Duration) -> Result<Answer, ChannelError> {
    tokio::time::timeout(within, exchange(dir, request))
        .await
        .map_err(|_| ChannelError::Timeout(within))?
}

async fn exchange(dir: &MachineDir, request: &Request) -> Result<Answer, ChannelError> {
    let mut stream = dir.connect(CONTROL).await?;
    // The empty line ends what an earlier client left half-written.
    stream.write_all(b"\n").await?;
    stream.write_all(&encode_request(request)).await?;
    let mut lines = Lines::new(MAX_ANSWER);
    let mut buffer = [0u8; 4096];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        for line in lines.push(&buffer[..count]) {
            let line = line.map_err(|error| ChannelError::Malformed(error.to_string()))?;
            let answer = decode_answer(&line).map_err(ChannelError::Malformed)?;
            if let Some(error) = &answer.error {
                return Err(ChannelError::Refused(error.clone()));
            }
            // An answer to an older question says nothing about this one.
            let follows = !matches!(request, Request::Shutdown { .. });
            if follows || answer.state == GuestState::Stopping {
                return Ok(answer);
            }
        }
    }
}
