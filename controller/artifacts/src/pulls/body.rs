//! The body of a run: intent, work, publication, and the tidying up that nothing may skip.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::manager::{Body, Run};
use super::work::{Job, Output, Work, WorkContext};
use crate::error::{PullError, Reason};
use crate::store::record::Content;
use crate::store::{Id, Pull, Store};
use crate::types::Resolved;

/// A job with what the store needs to know.
#[derive(Clone, Debug)]
pub struct Task {
    /// The work.
    pub job: Job,
    /// Where it is published; `None` for a resolve.
    pub id: Option<Id>,
    /// What its success proves: that these askers may have it, and who gave it.
    pub proofs: BTreeSet<String>,
    /// The registry that is to give it; see [`given_by`](super::identity::given_by).
    pub giver: Option<String>,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub enum Value {
    /// Of a resolve.
    Resolved(Arc<Resolved>),
    /// Of a pull: look into the store.
    Published,
}

/// The body for a [`Manager`](super::manager::Manager): does tasks with `work` and publishes to `store`.
pub fn body(store: Store, work: Arc<dyn Work>) -> Body<Task, Value> {
    Arc::new(move |task, run| -> BoxFuture<'static, _> {
        let (store, work) = (store.clone(), work.clone());
        async move { once(store, work, task, run).await.map(Arc::new) }.boxed()
    })
}

async fn once(store: Store, work: Arc<dyn Work>, task: Task, run: Run) -> Result<Value, PullError> {
    let Some(id) = task.id.clone() else {
        // A resolve writes nothing, so its directory is a path below which nothing can be made.
        let cx = WorkContext::new(run.cancel, run.progress, "/dev/null/none".into(), store.blobs());
        return match perform(&work, task.job, cx).await? {
            Output::Resolved(resolved) => Ok(Value::Resolved(Arc::new(resolved))),
            other => Err(wrong_answer(&other)),
        };
    };
    // Published between an asker's look and this run's turn: nothing is left to do. Whether this
    // asker may have it is asked when it comes for it. Another registry must give all of it to be believed.
    let (looked_for, giver) = (id.clone(), task.giver.clone());
    let there = move |s: &Store| {
        Ok(s.get(&looked_for)?.is_some() && giver.is_none_or(|giver| s.has_proof(&looked_for, &giver)))
    };
    if on_disk(&store, there).await? {
        return Ok(Value::Published);
    }
    let (digest, source) = match &task.job {
        Job::Image { source, digest, .. } | Job::Kernel { source, digest, .. } => (digest.clone(), source.to_string()),
        Job::Resolve { .. } => return Err(PullError::new(Reason::Internal, "a resolve cannot be published")),
    };
    let pull = Arc::new(on_disk(&store, move |s| s.begin(id, &digest, &source)).await?);
    let result = fill_and_publish(&store, &work, task, run, pull.clone()).await;
    let ended = on_disk(&store, move |s| {
        s.abandon(&pull);
        Ok(())
    });
    ended.await?;
    result.map(|()| Value::Published)
}

async fn fill_and_publish(
    store: &Store,
    work: &Arc<dyn Work>,
    task: Task,
    run: Run,
    pull: Arc<Pull>,
) -> Result<(), PullError> {
    let progress = run.progress.clone();
    let cx = WorkContext::new(run.cancel, run.progress, pull.dir.clone(), store.blobs());
    let content = match perform(work, task.job, cx).await? {
        Output::Image(image) => Content::Image {
            disk: image.disk,
            content_hash: image.content_hash,
            config: image.config,
        },
        Output::Kernel(kernel) => Content::Kernel {
            kernel: kernel.kernel,
            boot_format: kernel.boot_format,
            version: kernel.version,
            modules_tar: kernel.modules_tar,
            modules_disk: kernel.modules_disk,
            initrd: kernel.initrd,
        },
        other => return Err(wrong_answer(&other)),
    };
    progress.set_stage("publishing");
    on_disk(store, move |s| s.publish(&pull, content, task.proofs)).await
}

/// Runs the work and waits for its threads, also when it panics.
async fn perform(work: &Arc<dyn Work>, job: Job, cx: WorkContext) -> Result<Output, PullError> {
    let (work, threads) = (work.clone(), cx.clone());
    // Nothing is looked at after a panic but the directory, which is deleted.
    let result = AssertUnwindSafe(async move { work.run(job, cx).await })
        .catch_unwind()
        .await;
    if result.is_err() {
        // Its threads may be waiting for a part that is no more.
        threads.cancel.cancel();
    }
    threads.join_blocking().await;
    result.unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<&str>()
            .copied()
            .or(panic.downcast_ref::<String>().map(String::as_str));
        let said = said.unwrap_or("no message");
        Err(PullError::new(
            Reason::Internal,
            format!("the pull panicked ({said}); please report this with the log"),
        ))
    })
}

async fn on_disk<T: Send + 'static>(
    store: &Store,
    f: impl FnOnce(&Store) -> std::io::Result<T> + Send + 'static,
) -> Result<T, PullError> {
    let store = store.clone();
    match tokio::task::spawn_blocking(move || f(&store)).await {
        Ok(result) => result.map_err(|error| PullError::io("artefact store", &error)),
        Err(error) => Err(PullError::new(
            Reason::Internal,
            format!("the artefact store failed: {error}"),
        )),
    }
}

fn wrong_answer(output: &Output) -> PullError {
    let kind = match output {
        Output::Resolved(_) => "a resolve",
        Output::Image(_) => "an image",
        Output::Kernel(_) => "a kernel",
    };
    PullError::new(
        Reason::Internal,
        format!("the pipeline answered with {kind}; please report this with the log"),
    )
}
