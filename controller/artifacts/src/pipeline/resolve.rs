//! What a source means now.

use std::io;

use super::Inner;
use super::content::copy;
use super::failure;
use super::fetch::on_thread;
use super::image::{Found, check_platform};
use super::local::Here;
use super::origin::{FilePlace, FileSource, Opened, Origin};
use crate::error::{PullError, Reason};
use crate::layers::LayerError;
use crate::pulls::work::WorkContext;
use crate::reference::{Digest, Hasher};
use crate::registry::manifest::is_config;
use crate::types::{Credential, Resolved, Source};

impl Inner {
    /// Finds the digest that a source has now, or proves that it has the wanted one.
    pub async fn resolve(
        &self,
        source: &Source,
        digest: Option<&str>,
        platform: &str,
        credentials: &[Credential],
        cx: &WorkContext,
    ) -> Result<Resolved, PullError> {
        // The digest is known: all that is asked is whether this asker may have it.
        let proof = digest.is_some();
        let found = async {
            match self.open(source, digest, credentials).await? {
                Opened::File(file) => file_digest(&file, platform, cx).await,
                Opened::Image(Origin::Registry(registry), _)
                    if proof && let Some(digest) = registry.reference().digest.clone() =>
                {
                    Ok(Resolved {
                        reference: registry.reference().to_string(),
                        digest: digest.to_string(),
                        media_type: registry.has_manifest(&digest).await?,
                        platform: platform.to_owned(),
                        compressed_size: 0,
                    })
                }
                Opened::Image(origin, version) => {
                    let image = self.find(origin, version, platform).await?;
                    self.fits(source, &image, platform).await?;
                    let layers = image.manifest.layers.iter().map(|layer| layer.size);
                    Ok(Resolved {
                        reference: image.origin.name(),
                        digest: image.digest.to_string(),
                        media_type: image.media_type,
                        platform: image.platform,
                        compressed_size: layers.fold(image.manifest.config.size, u64::saturating_add),
                    })
                }
            }
        };
        tokio::select! {
            biased;
            () = cx.cancel.cancelled() => Err(PullError::cancelled()),
            found = found => found,
        }
    }

    /// An image that no index named a platform for says in its configuration what it is for. That is looked at
    /// where a platform is asked for by name; otherwise the pull finds out, and no blob is fetched twice.
    async fn fits(&self, source: &Source, image: &Found, platform: &str) -> Result<(), PullError> {
        let named = matches!(source, Source::Oci { platform: Some(_), .. });
        let config = &image.manifest.config;
        if !named || image.stated || !is_config(&config.media_type) {
            return Ok(());
        }
        let bytes = image.origin.small_blob(&config.digest()?, config.size).await?;
        check_platform(&image.origin.name(), &bytes, platform)
    }
}

/// The digest of one file. That of a URL stands in the want, and is checked when it is downloaded.
async fn file_digest(file: &FileSource, platform: &str, cx: &WorkContext) -> Result<Resolved, PullError> {
    let (digest, size) = match &file.place {
        FilePlace::Web(_) => (file.digest.clone(), 0),
        FilePlace::Disk(section) => {
            let here = Here::new(cx, &file.name, section.clone(), None);
            cx.progress.set_stage("hashing");
            cx.progress.set_total(section.length);
            (Some(on_thread(cx, move || hash(&here)).await?), section.length)
        }
    };
    let digest = digest.ok_or_else(|| PullError::new(Reason::Internal, format!("{}: it has no digest", file.name)))?;
    if file.digest.as_ref().is_some_and(|wanted| *wanted != digest) {
        let why = format!(
            "{}: it has the digest {digest} now, not the one that is pinned",
            file.name
        );
        return Err(PullError::new(Reason::WrongDigest, why));
    }
    Ok(Resolved {
        reference: file.name.clone(),
        digest: digest.to_string(),
        media_type: String::new(),
        platform: platform.to_owned(),
        compressed_size: size,
    })
}

fn hash(here: &Here) -> Result<Digest, PullError> {
    struct Into(Hasher);
    impl io::Write for Into {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut into = Into(Hasher::sha256());
    let name = format!("{}: while it was hashed", here.name);
    copy(&mut here.reader(), &mut into).map_err(|end| {
        end.say(
            |error| PullError::io(&name, &error),
            |error| failure::layer(&name, LayerError::Read(error)),
        )
    })?;
    Ok(into.0.finish())
}
