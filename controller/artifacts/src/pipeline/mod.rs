//! The pipeline: from a source to files in a private directory.

mod archive;
mod content;
mod disk;
mod ext4;
mod failure;
mod fetch;
mod file;
mod image;
mod kernel;
mod local;
mod origin;
mod patience;
mod resolve;

use std::path::PathBuf;

pub use file::{FileBuild, build_image_file};
use futures::future::BoxFuture;

use crate::error::PullError;
use crate::pulls::work::{Job, Output, Work, WorkContext};
use crate::registry::http::Http;
use crate::types::{Config, Limits};

/// Changes whenever equal layers would give other bytes than before.
const LAYOUT: &str = "ext4-1;merge-2;free-25%-256MiB";
/// The same for kernels.
const KERNEL_LAYOUT: &str = "ext4-1;kernel-2";

/// Does the jobs of the keyed pulls.
pub struct Pipeline(std::sync::Arc<Inner>);

struct Inner {
    http: Http,
    limits: Limits,
    import_dir: Option<PathBuf>,
    downloads: fetch::Downloads,
}

impl Pipeline {
    /// A pipeline with the bounds and the import directory of `config`. That this is not there is only said: it may come.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(config: &Config) -> Result<Pipeline, PullError> {
        let import = config.import_dir.as_deref().map(local::open_import_dir);
        if let Some(Err(error)) = import {
            tracing::warn!("path sources cannot be had: {}", error.message);
        }
        let inner = Inner {
            http: Http::new(&config.limits, config.registries.clone())?,
            limits: config.limits.clone(),
            import_dir: config.import_dir.clone(),
            downloads: fetch::Downloads::default(),
        };
        Ok(Pipeline(std::sync::Arc::new(inner)))
    }
}

impl Work for Pipeline {
    fn image_layout(&self) -> String {
        LAYOUT.into()
    }

    fn kernel_layout(&self) -> String {
        KERNEL_LAYOUT.into()
    }

    fn run(&self, job: Job, cx: WorkContext) -> BoxFuture<'static, Result<Output, PullError>> {
        let inner = self.0.clone();
        Box::pin(async move {
            match job {
                Job::Resolve {
                    source,
                    digest,
                    platform,
                    credentials,
                } => inner
                    .resolve(&source, digest.as_deref(), &platform, &credentials, &cx)
                    .await
                    .map(Output::Resolved),
                Job::Image {
                    source,
                    digest,
                    platform,
                    credentials,
                } => inner
                    .image(&source, Some(&digest), &platform, &credentials, &cx, disk::base_size())
                    .await
                    .map(|(_, image)| Output::Image(image)),
                Job::Kernel {
                    source,
                    digest,
                    platform,
                    credentials,
                    paths,
                } => inner
                    .kernel(&source, &digest, &platform, &credentials, &paths, &cx)
                    .await
                    .map(Output::Kernel),
            }
        })
    }
}
