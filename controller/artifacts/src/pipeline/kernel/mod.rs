//! Kernels: vmlet's own artefact, or the files of an ordinary image, archive or tar.

pub mod artefact;
mod extract;
mod search;

use super::archive::{Archive, Flavour};
use super::content::{Content, look, spool};
use super::fetch::{Bytes, on_thread, stop_all};
use super::image::{Configured, configured, digests, docker_layers, inputs, wanted};
use super::local::{Here, INDEX, Layout};
use super::origin::{FileSource, Opened, Origin};
use super::{Inner, failure};
use crate::error::{PullError, Reason};
use crate::layers::LayerError;
use crate::layers::show;
use crate::pulls::work::{BuiltKernel, KernelPaths, WorkContext};
use crate::reference::Digest;
use crate::registry::manifest::is_config;
use crate::types::{Credential, Source};
use extract::{Extract, bare};

const KERNEL: &str = "kernel";
const MODULES_TAR: &str = "modules.tar";
const MODULES_DISK: &str = "modules.ext4";
const INITRD: &str = "initrd";

/// What became of one file.
enum Step {
    /// It is unpacked.
    Done(BuiltKernel),
    /// It is an archive, to be looked into.
    Archive(Archive, Flavour),
}

impl Inner {
    /// Unpacks a kernel in `cx.dir`.
    pub async fn kernel(
        &self,
        source: &Source,
        digest: &str,
        platform: &str,
        credentials: &[Credential],
        paths: &KernelPaths,
        cx: &WorkContext,
    ) -> Result<BuiltKernel, PullError> {
        let name = source.to_string();
        cx.progress.set_stage("pulling");
        let opened = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => return Err(PullError::cancelled()),
            opened = self.open(source, Some(digest), credentials) => opened?,
        };
        match opened {
            Opened::Image(origin, version) => self.kernel_of(&name, origin, version, platform, paths, cx).await,
            Opened::File(file) => self.kernel_in(&file, platform, paths, cx).await,
        }
    }

    /// The kernel that a manifest describes.
    async fn kernel_of(
        &self,
        name: &str,
        origin: Origin,
        version: String,
        platform: &str,
        paths: &KernelPaths,
        cx: &WorkContext,
    ) -> Result<BuiltKernel, PullError> {
        let found = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => return Err(PullError::cancelled()),
            found = self.find(origin, version, platform) => found?,
        };
        let config = &found.manifest.config;
        if found.manifest.artifact_type.as_deref() == Some(artefact::ARTIFACT) {
            if *paths != KernelPaths::default() {
                let why = "it is a kernel artefact, in which everything has its place; leave the paths out";
                return Err(PullError::new(Reason::UnsupportedFormat, format!("{name}: {why}")));
            }
            return self.kernel_artefact(name, found, platform, cx).await;
        }
        if !is_config(&config.media_type) {
            let what = found.manifest.artifact_type.as_deref().unwrap_or(&config.media_type);
            let (what, own) = (show(what.as_bytes()), artefact::ARTIFACT);
            let why = format!("{name} is neither an image nor a kernel artefact ({own}), but {what}");
            return Err(PullError::new(Reason::UnsupportedFormat, why));
        }
        let wanted = wanted(name, &found.manifest, &self.limits)?;
        let digest = config.digest()?;
        let bytes = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => return Err(PullError::cancelled()),
            bytes = found.origin.small_blob(&digest, config.size) => bytes?,
        };
        let Configured { diff_ids, .. } = configured(name, &bytes, platform, found.manifest.layers.len())?;
        let extract = self.extract(name, &found.digest, paths, cx);
        let named = digests(&wanted);
        let make = move |blobs: &[Bytes]| {
            let layers = inputs(blobs, diff_ids.into_iter().map(Some));
            extract.run(layers, &named, &|| stop_all(blobs))
        };
        self.with_blobs(cx, &found.origin, wanted, make).await
    }

    /// The kernel that one file is, or holds.
    async fn kernel_in(
        &self,
        file: &FileSource,
        platform: &str,
        paths: &KernelPaths,
        cx: &WorkContext,
    ) -> Result<BuiltKernel, PullError> {
        let name = file.name.clone();
        let Some(digest) = &file.digest else {
            return Err(PullError::new(Reason::Internal, format!("{name}: it has no digest")));
        };
        let (dir, limits) = (cx.dir.clone(), self.limits.clone());
        let (what, unpacked, searched) = (name.clone(), cx.clone(), paths.clone());
        let extract = self.extract(&name, digest, paths, cx);
        let step = self.with_file(cx, file, move |bytes| {
            let stop = || stop_all(std::slice::from_ref(bytes));
            let mut looked = look(&what, bytes, &limits)?;
            match looked.content {
                Content::Ext4 => {
                    let why = "it is a file system; a kernel is a vmlinux, a bzImage, an archive or a tar";
                    Err(PullError::new(Reason::UnsupportedFormat, format!("{what}: {why}")))
                }
                Content::Kernel => {
                    if searched != KernelPaths::default() {
                        let why = "it is one kernel without anything beside it; leave the paths out";
                        return Err(PullError::new(Reason::UnsupportedFormat, format!("{what}: {why}")));
                    }
                    let wrong = |error| failure::layer(&what, LayerError::Read(error));
                    bare(&what, &mut looked.bytes, limits.kernel_bytes, &dir, wrong).map(Step::Done)
                }
                Content::Tar => {
                    let layers = vec![crate::layers::apply::Input {
                        bytes: looked.bytes,
                        diff_id: None,
                    }];
                    extract.run(layers, &[], &stop).map(Step::Done)
                }
                Content::Archive => {
                    let archive = spool(&what, bytes, looked, &dir, &limits)?;
                    if let Some(flavour) = archive.flavour() {
                        return Ok(Step::Archive(archive, flavour));
                    }
                    // Its names only looked like those of an archive.
                    let all = Bytes::Here(Here::new(&unpacked, &what, archive.bytes().clone(), None));
                    extract
                        .run(inputs(std::slice::from_ref(&all), [None]), &[], &stop)
                        .map(Step::Done)
                }
            }
        });
        let (archive, flavour) = match step.await? {
            Step::Done(kernel) => return Ok(kernel),
            Step::Archive(archive, flavour) => (archive, flavour),
        };
        cx.progress.set_stage("unpacking");
        cx.progress.set_done(0);
        match flavour {
            Flavour::Oci => {
                let layout = Layout::in_archive(name.clone(), archive.into(), self.limits.manifest_bytes);
                let origin = Origin::Layout(layout);
                self.kernel_of(&name, origin, INDEX.to_owned(), platform, paths, cx)
                    .await
            }
            Flavour::Docker => {
                let image = archive.docker_image(&name, &self.limits)?;
                let Configured { diff_ids, .. } = configured(&name, &image.config, platform, image.layers.len())?;
                let layers = docker_layers(cx, &name, image.layers);
                let extract = self.extract(&name, digest, paths, cx);
                let make = move || {
                    let inputs = inputs(&layers, diff_ids.iter().cloned().map(Some));
                    extract.run(inputs, &diff_ids, &|| ())
                };
                on_thread(cx, make).await
            }
        }
    }

    fn extract(&self, name: &str, identity: &Digest, paths: &KernelPaths, cx: &WorkContext) -> Extract {
        Extract {
            name: name.to_owned(),
            identity: identity.to_string(),
            paths: paths.clone(),
            dir: cx.dir.clone(),
            limits: self.limits.clone(),
            cancel: cx.cancel.clone(),
        }
    }
}

/// Whether a text may be a kernel's release: it becomes part of paths.
fn is_version(text: &str) -> bool {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"._+~-".contains(&b);
    !text.is_empty() && text.len() <= 64 && !text.starts_with('.') && text.bytes().all(safe)
}
