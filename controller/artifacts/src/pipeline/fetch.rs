//! One download per host and digest at a time; a second job that wants it waits, finds it there, and asks whether it may
//! have it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::Mutex as AsyncMutex;

use super::Inner;
use super::local::Here;
use super::origin::{FilePlace, FileSource, Origin, Remote};
use crate::error::{PullError, Reason};
use crate::pulls::work::WorkContext;
use crate::reference::Digest;
use crate::registry::blob::{Blob, Growing, download};

/// Transfers at a time for one job. Each has a thread, because writing to the disk blocks.
const AT_A_TIME: usize = 4;

/// The locks of files that are wanted now.
#[derive(Default)]
pub struct Downloads(Mutex<HashMap<PathBuf, Arc<AsyncMutex<()>>>>);

/// A blob in use by a job.
struct InUse {
    path: PathBuf,
    lock: Arc<AsyncMutex<()>>,
    /// Its bytes.
    growing: Growing,
}

/// Bytes that a job uses.
#[derive(Clone)]
pub enum Bytes {
    /// They are being downloaded.
    Coming(Growing),
    /// They lie on the local disk.
    Here(Here),
}

impl Bytes {
    /// Reads from the start; the end is only reported when the digest holds.
    pub fn reader(&self) -> Box<dyn Read + Send> {
        match self {
            Bytes::Coming(growing) => Box::new(growing.reader()),
            Bytes::Here(here) => Box::new(here.reader()),
        }
    }
}

impl Downloads {
    /// Downloads all of them, the first ones first and a few at a time, on threads of the job's own.
    fn start(&self, cx: &WorkContext, remote: &Remote, wanted: Vec<Blob>) -> Vec<InUse> {
        let mut blobs = Vec::with_capacity(wanted.len());
        let mut queue = VecDeque::with_capacity(wanted.len());
        for blob in wanted {
            let path = blob.path.clone();
            let lock = self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(path.clone())
                .or_default()
                .clone();
            let growing = Growing::default();
            queue.push_back((blob, lock.clone(), growing.clone()));
            blobs.push(InUse { path, lock, growing });
        }
        let threads = queue.len().min(AT_A_TIME);
        let queue = Arc::new(Mutex::new(queue));
        // What this job has fetched itself.
        let fetched = Arc::new(Mutex::new(HashSet::new()));
        for _ in 0..threads {
            let (job, queue, remote, fetched) = (cx.clone(), queue.clone(), remote.clone(), fetched.clone());
            let runtime = tokio::runtime::Handle::current();
            cx.spawn_blocking(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((blob, lock, growing)) = next else { return };
                    let result = runtime.block_on(async {
                        let _one = tokio::select! { () = job.cancel.cancelled() => return Err(PullError::cancelled()), guard = lock.lock() => guard };
                        let may_have = async || {
                            let ours = fetched.lock().unwrap_or_else(PoisonError::into_inner).contains(&blob.digest);
                            if ours { Ok(()) } else { remote.may_have(&blob.digest).await }
                        };
                        download(&blob, &growing, &job.progress, &job.cancel, may_have, |from| remote.blob(&blob.digest, from)).await?;
                        fetched.lock().unwrap_or_else(PoisonError::into_inner).insert(blob.digest.clone());
                        Ok(())
                    });
                    growing.end(result);
                }
            });
        }
        blobs
    }

    /// The job is over and its threads have ended. The file stays, for other images that share the blob
    /// and for a resume: the store's collection removes it when nobody has used it for a while.
    fn done(&self, blob: InUse) {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let InUse { path, lock, growing } = blob;
        drop(growing);
        if let Ok(file) = std::fs::File::options().append(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        // The map's and ours: nobody else. (The job's threads have ended.)
        if Arc::strong_count(&lock) <= 2 {
            locks.remove(&path);
        }
    }
}

impl Inner {
    /// Lets `make` use blobs, on a thread; those of a registry while they come. Whatever goes
    /// wrong, no thread is left when this returns, and the first error is the one that counts.
    pub async fn with_blobs<T: Send + 'static>(
        &self,
        cx: &WorkContext,
        origin: &Origin,
        wanted: Vec<(Digest, u64)>,
        make: impl FnOnce(&[Bytes]) -> Result<T, PullError> + Send + 'static,
    ) -> Result<T, PullError> {
        cx.progress
            .set_total(wanted.iter().map(|(_, size)| *size).fold(0, u64::saturating_add));
        match origin {
            Origin::Registry(registry) => {
                let repository = registry.reference();
                let repository = format!("{}/{}", repository.registry, repository.repository);
                let remote = Remote::Registry(registry.clone());
                let blob = |(digest, size)| {
                    let name = format!("{repository} (blob {digest})");
                    self.blob(cx, &remote, name, digest, Some(size), size)
                };
                let wanted = wanted.into_iter().map(blob).collect();
                self.downloaded(cx, &remote, wanted, make).await
            }
            Origin::Layout(layout) => {
                let mut here = Vec::with_capacity(wanted.len());
                for (digest, size) in wanted {
                    let name = format!("{}: {digest}", layout.name);
                    let section = layout.blob(&digest, size)?;
                    here.push(Bytes::Here(Here::new(cx, &name, section, Some(digest))));
                }
                on_files(cx, here, make).await
            }
        }
    }

    /// The same for a source that is one file.
    pub async fn with_file<T: Send + 'static>(
        &self,
        cx: &WorkContext,
        file: &FileSource,
        make: impl FnOnce(&Bytes) -> Result<T, PullError> + Send + 'static,
    ) -> Result<T, PullError> {
        match (&file.place, &file.digest) {
            (FilePlace::Web(web), Some(digest)) => {
                let (remote, most) = (Remote::Web(web.clone()), self.limits.uncompressed_bytes);
                let wanted = vec![self.blob(cx, &remote, file.name.clone(), digest.clone(), None, most)];
                self.downloaded(cx, &remote, wanted, only(make)).await
            }
            (FilePlace::Web(_), None) => Err(PullError::new(
                Reason::Internal,
                format!("{}: it has no digest", file.name),
            )),
            (FilePlace::Disk(section), digest) => {
                cx.progress.set_total(section.length);
                let here = Bytes::Here(Here::new(cx, &file.name, section.clone(), digest.clone()));
                on_files(cx, vec![here], only(make)).await
            }
        }
    }

    fn blob(
        &self,
        cx: &WorkContext,
        remote: &Remote,
        name: String,
        digest: Digest,
        size: Option<u64>,
        most: u64,
    ) -> Blob {
        Blob {
            name,
            path: cx.blobs.join(remote.file_name(&digest)),
            digest,
            size,
            most,
            stall: self.limits.stall_timeout,
        }
    }

    async fn downloaded<T: Send + 'static>(
        &self,
        cx: &WorkContext,
        remote: &Remote,
        wanted: Vec<Blob>,
        make: impl FnOnce(&[Bytes]) -> Result<T, PullError> + Send + 'static,
    ) -> Result<T, PullError> {
        // Of our own: a failure ends this job's transfers, and is no word of "nobody wants it".
        let mut own = cx.clone();
        own.cancel = cx.cancel.child_token();
        let blobs = self.downloads.start(&own, remote, wanted);
        let bytes: Vec<Bytes> = blobs.iter().map(|blob| Bytes::Coming(blob.growing.clone())).collect();
        let used = bytes.clone();
        let mut result = on_thread(&own, move || make(&used)).await;
        stop_all(&bytes);
        match &result {
            // The content is wrong, or its bytes are: only their digests can tell, so they are awaited.
            Err(error) if may_be_damage(error) => {}
            Err(_) => own.cancel.cancel(),
            Ok(_) => {}
        }
        own.join_blocking().await;
        if result.is_err()
            && !own.cancel.is_cancelled()
            && let Some(damage) = blobs.iter().find_map(|blob| blob.growing.failure())
        {
            result = Err(damage);
        }
        for blob in blobs {
            self.downloads.done(blob);
        }
        result
    }
}

/// For those who have one file only.
fn only<T>(
    make: impl FnOnce(&Bytes) -> Result<T, PullError> + Send + 'static,
) -> impl FnOnce(&[Bytes]) -> Result<T, PullError> + Send + 'static {
    move |files| match files {
        [one] => make(one),
        _ => Err(PullError::new(Reason::Internal, "one file became several")),
    }
}

/// Runs `make` on a thread of the job.
pub async fn on_thread<T: Send + 'static>(
    cx: &WorkContext,
    make: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    cx.spawn_blocking(make).await.unwrap_or_else(|_| {
        Err(PullError::new(
            Reason::Internal,
            "the thread that uses the downloads panicked",
        ))
    })
}

/// The same for files of this machine; when their content is wrong, their digests tell whether it is
/// they that are damaged.
async fn on_files<T: Send + 'static>(
    cx: &WorkContext,
    here: Vec<Bytes>,
    make: impl FnOnce(&[Bytes]) -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    on_thread(cx, move || {
        let result = make(&here);
        if result.as_ref().is_err_and(may_be_damage) {
            for bytes in &here {
                let read = std::io::copy(&mut bytes.reader(), &mut std::io::sink());
                if let Err(error) = read
                    && let Some(damage) = error.get_ref().and_then(|inner| inner.downcast_ref::<PullError>())
                {
                    return Err(damage.clone());
                }
            }
        }
        result
    })
    .await
}

/// Whether an error of the content can come from bytes that are not the right ones.
fn may_be_damage(error: &PullError) -> bool {
    matches!(error.reason, Reason::Malformed | Reason::WrongDigest)
}

/// Wakes everybody who waits for bytes that will not be used.
pub fn stop_all(bytes: &[Bytes]) {
    for bytes in bytes {
        if let Bytes::Coming(growing) = bytes {
            growing.stop();
        }
    }
}
