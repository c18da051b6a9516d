//! The seam between "when and once" (this module's siblings) and "how" (the pipeline).

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::PullError;
use crate::types::{BootFormat, Credential, ImageConfig, Resolved, Source};

/// Does the jobs: resolves references, builds disks, unpacks kernels. It decides nothing about
/// when, how often or for whom.
pub trait Work: Send + Sync + 'static {
    /// The writer's format version and layout parameters for image disks. It is part of the disk
    /// identity: a change of it means other bytes for the same digest.
    fn image_layout(&self) -> String;

    /// The same for what a kernel artefact is unpacked to.
    fn kernel_layout(&self) -> String;

    /// Does one job.
    ///
    /// The future must end soon after `cx.cancel` fires, and must not leave threads behind: use
    /// [`WorkContext::spawn_blocking`], whose threads are waited for. Dropping it is never done
    /// while the process lives. Errors are for people; see [`PullError`].
    fn run(&self, job: Job, cx: WorkContext) -> BoxFuture<'static, Result<Output, PullError>>;
}

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Find out what a source means now; answer with [`Output::Resolved`]. Nothing is written.
    Resolve {
        /// Where it is.
        source: Source,
        /// When given: prove that exactly this digest can be had from the source. Of the answer only the digest
        /// is used then.
        digest: Option<String>,
        /// The wanted platform.
        platform: String,
        /// Credentials to try, in order.
        credentials: Vec<Credential>,
    },
    /// Pull and make a disk in `cx.dir`; answer with [`Output::Image`].
    Image {
        /// Where it is.
        source: Source,
        /// Pull exactly this.
        digest: String,
        /// The wanted platform.
        platform: String,
        /// Credentials to try, in order.
        credentials: Vec<Credential>,
    },
    /// Pull and unpack a kernel in `cx.dir`; answer with [`Output::Kernel`].
    Kernel {
        /// Where it is.
        source: Source,
        /// Pull exactly this.
        digest: String,
        /// The wanted platform.
        platform: String,
        /// Credentials to try, in order.
        credentials: Vec<Credential>,
        /// Where inside the artefact things are.
        paths: KernelPaths,
    },
}

/// Paths inside a kernel artefact; absent ones are searched for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KernelPaths {
    /// The kernel.
    pub kernel: Option<String>,
    /// The initrd.
    pub initrd: Option<String>,
    /// The directory of modules.
    pub modules: Option<String>,
}

/// The answer to a [`Job`]. File names are plain names of files in `cx.dir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Answer to [`Job::Resolve`].
    Resolved(Resolved),
    /// Answer to [`Job::Image`].
    Image(BuiltImage),
    /// Answer to [`Job::Kernel`].
    Kernel(BuiltKernel),
}

/// A disk written to `cx.dir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltImage {
    /// File name of the ext4 image.
    pub disk: String,
    /// Hash of its content.
    pub content_hash: String,
    /// How to run it.
    pub config: ImageConfig,
}

/// A kernel unpacked to `cx.dir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltKernel {
    /// File name of the kernel.
    pub kernel: String,
    /// How the kernel file is booted.
    pub boot_format: BootFormat,
    /// The kernel's release.
    pub version: String,
    /// File name of the tar of modules.
    pub modules_tar: Option<String>,
    /// File name of the ext4 of modules.
    pub modules_disk: Option<String>,
    /// File name of the artefact's own initrd.
    pub initrd: Option<String>,
}

/// What a job may use.
#[derive(Clone, Debug)]
pub struct WorkContext {
    /// Fires when nobody wants the result any more.
    pub cancel: CancellationToken,
    /// Where to say how far it is.
    pub progress: Progress,
    /// A private, empty directory to fill; on the store's file system. Published whole on success,
    /// with every file that is in it; deleted otherwise. Does not exist for [`Job::Resolve`].
    pub dir: PathBuf,
    /// Partial and complete blobs by host and digest, shared by all jobs and kept across restarts. The job
    /// deletes what it needs no more; the store deletes what nobody touched for long.
    pub blobs: PathBuf,
    tracker: TaskTracker,
}

impl WorkContext {
    /// A context for one job.
    pub fn new(cancel: CancellationToken, progress: Progress, dir: PathBuf, blobs: PathBuf) -> WorkContext {
        WorkContext {
            cancel,
            progress,
            dir,
            blobs,
            tracker: TaskTracker::new(),
        }
    }

    /// Runs `f` on a blocking thread that is waited for before the job counts as ended, whatever
    /// happens to the job's future. `f` must look at `cancel` from time to time.
    pub fn spawn_blocking<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn_blocking(f)
    }

    /// Waits until every thread of [`WorkContext::spawn_blocking`] has ended.
    pub async fn join_blocking(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// How far a job is. Cheap to clone and to update; it wakes nobody.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<ProgressInner>);

#[derive(Debug, Default)]
struct ProgressInner {
    done: AtomicU64,
    total: AtomicU64,
    stage: Mutex<String>,
}

impl Progress {
    /// Sets how many bytes there are in all.
    pub fn set_total(&self, bytes: u64) {
        self.0.total.store(bytes, Ordering::Relaxed);
    }

    /// Adds to the bytes done.
    pub fn add_done(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Sets the bytes done (a blob started over, for example).
    pub fn set_done(&self, bytes: u64) {
        self.0.done.store(bytes, Ordering::Relaxed);
    }

    /// Says in a few words what is being done ("pulling", "writing metadata").
    pub fn set_stage(&self, stage: &str) {
        let mut current = self.0.stage.lock().unwrap_or_else(PoisonError::into_inner);
        current.clear();
        current.push_str(stage);
    }

    /// Bytes done and bytes in all (0 while unknown).
    pub fn bytes(&self) -> (u64, u64) {
        (
            self.0.done.load(Ordering::Relaxed),
            self.0.total.load(Ordering::Relaxed),
        )
    }

    /// What is being done.
    pub fn stage(&self) -> String {
        self.0.stage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
