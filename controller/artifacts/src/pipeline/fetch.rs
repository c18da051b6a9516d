//! One download per digest at a time; a second job that wants it waits and finds it there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Mutex as AsyncMutex;

use crate::error::PullError;
use crate::pulls::work::WorkContext;
use crate::reference::Digest;
use crate::registry::Registry;
use crate::registry::blob::{Blob, Growing, download};

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
    /// Starts (or joins the queue for) a download on a thread of the job's own.
    pub fn start(&self, cx: &WorkContext, registry: &Registry, digest: Digest, size: u64) -> InUse {
        let lock = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(digest.clone()).or_default().clone();
        let growing = Growing::default();
        let blob = Blob { path: cx.blobs.join(digest.file_name()), digest: digest.clone(), size: Some(size), most: size };
        let (job, held, writer, registry) = (cx.clone(), lock.clone(), growing.clone(), registry.clone());
        let handle = tokio::runtime::Handle::current();
        cx.spawn_blocking(move || {
            let result = handle.block_on(async {
                let _one = tokio::select! { () = job.cancel.cancelled() => return Err(PullError::cancelled()), guard = held.lock() => guard };
                download(&blob, &writer, &job.progress, &job.cancel, |from| registry.blob(&blob.digest, from)).await
            });
            writer.end(result);
        });
        InUse { digest, lock, growing }
    }

    /// The job is over. After success the file goes, unless another job waits for it.
    pub fn done(&self, blob: InUse, blobs: &Path, succeeded: bool) {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let InUse { digest, lock, growing } = blob;
        drop(growing);
        // The map's and ours: nobody else. (The download's thread has dropped its own, or will not look.)
        if Arc::strong_count(&lock) <= 2 {
            locks.remove(&digest);
            if succeeded {
                let _ = std::fs::remove_file(blobs.join(digest.file_name()));
            }
        }
    }
}
