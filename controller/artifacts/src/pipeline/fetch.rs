//! One download per digest at a time; a second job that wants it waits and finds it there.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Mutex as AsyncMutex;

use super::Inner;
use super::origin::Origin;
use crate::error::{PullError, Reason};
use crate::pulls::work::WorkContext;
use crate::reference::Digest;
use crate::registry::blob::{Blob, Growing, download};

/// Transfers at a time for one job. Each has a thread, because writing to the disk blocks.
const AT_A_TIME: usize = 4;

/// The locks of digests that are wanted now.
#[derive(Default)]
pub struct Downloads(Mutex<HashMap<Digest, Arc<AsyncMutex<()>>>>);

/// A blob in use by a job.
pub struct InUse {
    digest: Digest,
    lock: Arc<AsyncMutex<()>>,
    /// Its bytes.
    pub growing: Growing,
}

impl Downloads {
    /// Downloads all of them, the first ones first and a few at a time, on threads of the job's own.
    pub fn start(&self, cx: &WorkContext, origin: &Origin, wanted: Vec<(Digest, u64)>) -> Vec<InUse> {
        let mut blobs = Vec::with_capacity(wanted.len());
        let mut queue = VecDeque::with_capacity(wanted.len());
        for (digest, size) in wanted {
            let lock = self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(digest.clone())
                .or_default()
                .clone();
            let growing = Growing::default();
            let blob = Blob {
                path: cx.blobs.join(digest.file_name()),
                digest: digest.clone(),
                size: Some(size),
                most: size,
            };
            queue.push_back((blob, lock.clone(), growing.clone()));
            blobs.push(InUse { digest, lock, growing });
        }
        let threads = queue.len().min(AT_A_TIME);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let (job, queue, origin) = (cx.clone(), queue.clone(), origin.clone());
            let runtime = tokio::runtime::Handle::current();
            cx.spawn_blocking(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((blob, lock, growing)) = next else { return };
                    let result = runtime.block_on(async {
                        let _one = tokio::select! { () = job.cancel.cancelled() => return Err(PullError::cancelled()), guard = lock.lock() => guard };
                        download(&blob, &growing, &job.progress, &job.cancel, |from| origin.blob(&blob.digest, from)).await
                    });
                    growing.end(result);
                }
            });
        }
        blobs
    }

    /// The job is over and its threads have ended. After success the file goes, unless another job waits for it.
    pub fn done(&self, blob: InUse, blobs: &Path, succeeded: bool) {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let InUse { digest, lock, growing } = blob;
        drop(growing);
        // The map's and ours: nobody else. (The job's threads have ended.)
        if Arc::strong_count(&lock) <= 2 {
            locks.remove(&digest);
            if succeeded {
                let _ = std::fs::remove_file(blobs.join(digest.file_name()));
            }
        }
    }
}

impl Inner {
    /// Downloads blobs and lets `make` use them, on a thread, while they come. Whatever goes
    /// wrong, no thread is left when this returns, and the first error is the one that counts.
    pub async fn with_blobs<T: Send + 'static>(
        &self,
        cx: &WorkContext,
        origin: &Origin,
        wanted: Vec<(Digest, u64)>,
        make: impl FnOnce(&[Growing]) -> Result<T, PullError> + Send + 'static,
    ) -> Result<T, PullError> {
        cx.progress
            .set_total(wanted.iter().map(|(_, size)| *size).fold(0, u64::saturating_add));
        // Of our own: a failure ends this job's transfers, and is no word of "nobody wants it".
        let mut own = cx.clone();
        own.cancel = cx.cancel.child_token();
        let blobs = self.downloads.start(&own, origin, wanted);
        let growing: Vec<Growing> = blobs.iter().map(|blob| blob.growing.clone()).collect();
        let making = own.spawn_blocking(move || make(&growing));
        let result = making.await.unwrap_or_else(|_| {
            Err(PullError::new(
                Reason::Internal,
                "the thread that uses the downloads panicked",
            ))
        });
        if let Err(error) = &result {
            own.cancel.cancel();
            let growing: Vec<Growing> = blobs.iter().map(|blob| blob.growing.clone()).collect();
            end_all(&growing, error);
        }
        own.join_blocking().await;
        for blob in blobs {
            self.downloads.done(blob, &cx.blobs, result.is_ok());
        }
        result
    }
}

/// Wakes everybody who waits for bytes that will not come.
pub fn end_all(blobs: &[Growing], error: &PullError) {
    for blob in blobs {
        blob.end(Err(error.clone()));
    }
}
