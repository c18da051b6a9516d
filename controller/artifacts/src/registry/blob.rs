//! Downloading a blob into its partial file, which others read while it grows.
//!
//! The file is the state that a resume needs, across disconnects and restarts: whatever it holds is
//! hashed first, and the rest is asked for by Range. It is never trusted before its digest holds, and only ever grows:
//! one that is of no use is unlinked, and a new one begun, because others may still read it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio_util::sync::CancellationToken;

use super::health::Health;
use super::http::{Pace, unreachable};
use crate::error::{Kind, PullError, Reason};
use crate::pulls::identity::hash;
use crate::pulls::work::Progress;
use crate::reference::Digest;

/// So many connections without a byte, or windows with too few of them, end a download.
const IDLE_TRIES: u32 = 3;
/// The longest pause between two connections, but for its jitter. It is no longer than a stall may be, either.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The name of the file for a blob that comes from `host`, a registry or the origin of a URL. What one host has given is
/// never used for another: it is this one's word that decides who may have it.
pub fn file_name(host: &str, digest: &Digest) -> String {
    format!("{}.{}", digest.file_name(), &hash(&["blob", host])[..16])
}

/// What to download, and where to.
pub struct Blob {
    /// For messages.
    pub name: String,
    /// What its bytes must be.
    pub digest: Digest,
    /// Its exact size, when known.
    pub size: Option<u64>,
    /// Never more than this.
    pub most: u64,
    /// The partial file.
    pub path: PathBuf,
    /// Over this time some bytes must come.
    pub stall: Duration,
}

/// A transfer that has begun.
pub struct Transfer {
    /// The answer.
    pub response: Response,
    /// Who gives it, if that is not the source itself.
    pub mirror: Option<Mirror>,
}

/// A host that stands in for another.
#[derive(Clone)]
pub struct Mirror {
    host: String,
    health: Health,
}

impl Mirror {
    /// The mirror on this host.
    pub(super) fn new(host: &str, health: &Health) -> Mirror {
        Mirror {
            host: host.to_owned(),
            health: health.clone(),
        }
    }
}

/// How far a download is; shared by the one who writes and those who read.
#[derive(Clone)]
pub struct Growing(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    available: u64,
    file: Option<Arc<File>>,
    end: Option<Result<(), PullError>>,
    /// Readers are to stop, whatever becomes of the download.
    stopped: bool,
}

impl Default for Growing {
    fn default() -> Self {
        Growing(Arc::new((Mutex::default(), Condvar::new())))
    }
}

impl Growing {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how it ended. The first word counts.
    pub fn end(&self, result: Result<(), PullError>) {
        self.state().end.get_or_insert(result);
        self.0.1.notify_all();
    }

    /// Lets readers stop waiting for bytes that nobody will use.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.0.1.notify_all();
    }

    /// The download's error, if it failed.
    pub fn failure(&self) -> Option<PullError> {
        self.state().end.clone()?.err()
    }

    /// The file, once it has begun.
    pub fn file(&self) -> Option<Arc<File>> {
        self.state().file.clone()
    }

    fn advance(&self, file: &Arc<File>, available: u64) {
        let mut state = self.state();
        state.file.get_or_insert_with(|| file.clone());
        state.available = available;
        self.0.1.notify_all();
    }

    /// Reads from the start; blocks for bytes that are not there yet. The end of the file is only
    /// reported when its digest holds.
    pub fn reader(&self) -> GrowingReader {
        GrowingReader {
            growing: self.clone(),
            at: 0,
        }
    }
}

/// Reads a [`Growing`] file.
pub struct GrowingReader {
    growing: Growing,
    at: u64,
}

impl Read for GrowingReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (file, available) = {
            let mut state = self.growing.state();
            loop {
                if state.stopped {
                    return Err(io::Error::other(PullError::cancelled()));
                }
                if let Some(Err(error)) = &state.end {
                    return Err(io::Error::other(error.clone()));
                }
                if state.available > self.at
                    && let Some(file) = state.file.clone()
                {
                    break (file, state.available);
                }
                if state.end.is_some() {
                    return Ok(0);
                }
                state = self.growing.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let most = usize::try_from(available - self.at)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let n = file.read_at(&mut buf[..most], self.at)?;
        if n == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// Downloads; `get` starts a transfer at an offset. Bytes that are here already are used once `may_have` has said that
/// the asker may have them. Writes block, so this runs on a thread that may.
///
/// # Errors
/// That of `may_have`, transport errors after a few tries without a byte, wrong size (a file with the right digest stays then), wrong digest
/// (the file is removed then), the local disk, cancellation. Wrong content of a mirror is a transient error: it is not asked for that
/// digest again.
pub async fn download<F, M>(
    blob: &Blob,
    growing: &Growing,
    progress: &Progress,
    cancel: &CancellationToken,
    may_have: impl FnOnce() -> M,
    mut get: impl FnMut(u64) -> F,
) -> Result<(), PullError>
where
    F: Future<Output = Result<Transfer, PullError>>,
    M: Future<Output = Result<(), PullError>>,
{
    let local = |error: io::Error| PullError::io(format!("the partial download of {}", blob.name), &error);
    let open = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(&blob.path).map(Arc::new).map_err(local)
    };
    let mut file = open()?;
    let most = blob.size.unwrap_or(blob.most);
    // The size is only a manifest's word. Others may read this very file, so it is never made shorter.
    let length = file.metadata().map_err(local)?.len();
    let longer = length > most;
    if length > 0 {
        // Before anybody reads a byte: what is wrong with them says something of them.
        tokio::select! { biased; () = cancel.cancelled() => return Err(PullError::cancelled()), may = may_have() => may? }
    }
    let mut hasher = blob.digest.hasher();
    let mut have = 0u64;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = file.read_at(&mut buffer, have).map_err(local)?;
        if n == 0 {
            break;
        }
        if cancel.is_cancelled() {
            return Err(PullError::cancelled());
        }
        hasher.update(&buffer[..n]);
        have += n as u64;
        if !longer {
            growing.advance(&file, have);
        }
    }
    match (hasher.clone().finish() == blob.digest, blob.size) {
        (true, Some(size)) if size != have => {
            let why = format!("{}: it has {have} bytes, but the manifest says {size}", blob.name);
            return Err(PullError::new(Reason::Malformed, why));
        }
        (true, None) if longer => {
            let why = format!(
                "{}: it has {have} bytes, more than the {most} that are allowed",
                blob.name
            );
            return Err(PullError::new(Reason::TooLarge, why));
        }
        (false, _) if longer => {
            // Whoever reads it keeps it.
            std::fs::remove_file(&blob.path).map_err(local)?;
            (file, hasher, have) = (open()?, blob.digest.hasher(), 0);
        }
        _ => {}
    }
    drop(buffer);
    progress.add_done(have);
    let resumed = have > 0;
    growing.advance(&file, have);
    let mut pace = Pace::new(blob.stall);
    let mut idle = 0;
    // Connections in a row that brought next to nothing.
    let mut poor = 0;
    // Who sent something, but for the source itself.
    let mut mirrors: Vec<Mirror> = Vec::new();
    // Until the server shows that it cannot do ranges.
    let mut ranged = true;
    let damaged = || {
        PullError::new(
            Reason::Unavailable,
            format!(
                "{}: the partial download from before was damaged; it starts again",
                blob.name
            ),
        )
    };
    let too_large = || {
        PullError::new(
            Reason::TooLarge,
            format!(
                "{}: the server sends more than the {most} bytes that {}",
                blob.name,
                if blob.size.is_some() {
                    "were announced"
                } else {
                    "are allowed"
                }
            ),
        )
    };
    'transfer: while blob.size.is_none_or(|size| have < size) {
        // A file of unknown length that is already whole must not be asked for more.
        if blob.size.is_none() && hasher.clone().finish() == blob.digest {
            break;
        }
        let before = have;
        let mut giver = None;
        let outcome: Result<(), PullError> = async {
            let mut next = async |from| tokio::select! { biased; () = cancel.cancelled() => Err(PullError::cancelled()), r = get(from) => r };
            let mut transfer = next(if ranged { have } else { 0 }).await?;
            giver = transfer.mirror;
            if transfer.response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
                if let Some(mirror) = &giver {
                    mirror.health.wrong(&mirror.host, &blob.digest);
                    let why = format!("{}: the mirror {} has less of it than was here before", blob.name, mirror.host);
                    return Err(PullError::new(Reason::Unavailable, why));
                }
                // It may be all that is wrong with it. Readers have seen what is there: it is read over and hashed as it
                // is, so that nothing is joined to it that does not fit.
                ranged = false;
                transfer = next(0).await?;
                giver = transfer.mirror;
            }
            let response = transfer.response;
            // A server without Range sends everything again: what is there already is read over.
            let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { have };
            if response.status() == StatusCode::PARTIAL_CONTENT {
                let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or("");
                // The unit is in any case (RFC 9110 section 14.1).
                if !range.to_ascii_lowercase().starts_with(&format!("bytes {have}-")) {
                    ranged = false;
                    return Err(PullError::new(Reason::Unavailable, format!("{}: the server sent another range than asked for", blob.name)));
                }
            }
            // Of a file that nobody has described yet, the server says how long it is; that is for progress only.
            if let (None, Some(length)) = (blob.size, response.content_length()) {
                progress.set_total(have - skip + length);
            }
            let mut stream = response.bytes_stream();
            loop {
                let chunk = tokio::select! { biased; () = cancel.cancelled() => return Err(PullError::cancelled()), c = stream.next() => c };
                let Some(chunk) = chunk else { return Ok(()) };
                let chunk = chunk.map_err(|error| unreachable(&blob.name, error, blob.stall))?;
                let skipped = skip.min(chunk.len() as u64);
                skip -= skipped;
                let fresh = &chunk[skipped as usize..];
                if have + fresh.len() as u64 > most {
                    return Err(too_large());
                }
                if let Some(mirror) = &giver
                    && mirrors.iter().all(|known| known.host != mirror.host)
                {
                    mirrors.push(mirror.clone());
                }
                file.write_all_at(fresh, have).map_err(local)?;
                hasher.update(fresh);
                have += fresh.len() as u64;
                progress.add_done(fresh.len() as u64);
                growing.advance(&file, have);
                pace.came(chunk.len() as u64, &blob.name)?;
            }
        }
        .await;
        let passing = |error: &PullError| {
            matches!(error.reason, Reason::Unavailable | Reason::Stalled)
                && error.kind == PullError::new(error.reason, "").kind
                && *error != damaged()
        };
        let outcome = match outcome {
            Ok(()) if blob.size.is_none() => break 'transfer,
            Ok(()) if blob.size == Some(have) => continue,
            Ok(()) => pace.came(0, &blob.name),
            Err(error) if error.reason == Reason::Stalled => {
                // That counts for this window.
                pace = Pace::new(blob.stall);
                Err(error)
            }
            Err(error) if passing(&error) => pace.came(0, &blob.name).and(Err(error)),
            Err(error) => Err(error),
        };
        let stalled = outcome.as_ref().is_err_and(|error| error.reason == Reason::Stalled);
        if have - before >= pace.least().max(1) {
            (idle, poor) = (0, 0);
        } else {
            idle += u32::from(stalled || have == before);
            poor += 1;
        }
        let rest = async || {
            let pause = (Duration::from_millis(200) * (1 << poor.min(6)))
                .min(LONGEST_PAUSE)
                .min(blob.stall);
            let pause = pause + Duration::from_millis(rand::random_range(0..200));
            tokio::select! { () = cancel.cancelled() => Err(PullError::cancelled()), () = tokio::time::sleep(pause) => Ok(()) }
        };
        // It broke off or stands still: another is asked for the rest, if there is one.
        let useless = match outcome.as_ref().map_err(|error| error.reason) {
            Ok(()) | Err(Reason::Unavailable) => have == before,
            Err(reason) => reason == Reason::Stalled,
        };
        if let Some(mirror) = giver.as_ref().filter(|_| useless) {
            mirror.health.troubled(&mirror.host);
        }
        match outcome {
            Ok(()) if poor == 0 => {}
            Ok(()) if idle < IDLE_TRIES => rest().await?,
            Ok(()) => {
                return Err(PullError::new(
                    Reason::Unavailable,
                    format!("{}: the server ends it after {have} of {most} bytes", blob.name),
                ));
            }
            Err(_) if blob.size == Some(have) && stalled => {}
            Err(error) if passing(&error) && idle < IDLE_TRIES => {
                tracing::debug!(digest = %blob.digest, have, %error, "transfer broke off, resuming");
                rest().await?;
            }
            Err(error) => {
                if error.reason == Reason::TooLarge || error == damaged() {
                    let _ = std::fs::remove_file(&blob.path);
                }
                return Err(match &giver {
                    Some(mirror) if error.reason == Reason::TooLarge => {
                        blamed(blob, std::slice::from_ref(mirror), &error.message)
                    }
                    _ => error,
                });
            }
        }
    }
    (&*file).flush().map_err(local)?;
    let actual = hasher.finish();
    if actual == blob.digest {
        return Ok(());
    }
    std::fs::remove_file(&blob.path).map_err(local)?;
    if resumed {
        return Err(damaged());
    }
    let why = format!(
        "{}: the server sent content with the digest {actual}, not {}",
        blob.name, blob.digest
    );
    if mirrors.is_empty() {
        return Err(PullError::new(Reason::WrongDigest, why));
    }
    Err(blamed(blob, &mirrors, &why))
}

/// What mirrors sent is wrong: others are asked from now on, so it is worth to try again soon.
fn blamed(blob: &Blob, mirrors: &[Mirror], why: &str) -> PullError {
    for mirror in mirrors {
        mirror.health.wrong(&mirror.host, &blob.digest);
    }
    let hosts: Vec<&str> = mirrors.iter().map(|mirror| mirror.host.as_str()).collect();
    let hosts = hosts.join(", ");
    PullError {
        reason: Reason::WrongDigest,
        message: format!("{why}; it came from the mirror {hosts}, which is not asked for it again"),
        kind: Kind::Transient { retry_after: None },
    }
}
