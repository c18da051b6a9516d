//! What callers say and hear: wants, states, results, settings.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::registry::config::Registries;

/// Who asks: an opaque name, usually an object's uid. It is what is sent on the `wake` channel
/// when something it asked for became ready or failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Interest(pub String);

/// Where an artefact comes from. Its serialised form is kept on disk by those who pin by source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A reference into an OCI registry.
    Oci {
        /// `registry/repository:tag`, `…@sha256:…`, or a short form.
        reference: String,
        /// `os/arch[/variant]`; this machine's when absent.
        platform: Option<String>,
    },
    /// One file behind http or https.
    Http {
        /// The URL.
        url: String,
        /// SHA-256 of the file, 64 hex digits.
        sha256: String,
    },
    /// A file or directory below the import directory.
    Path {
        /// Relative to the import directory.
        path: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Oci { reference, .. } => f.write_str(reference),
            // A query may hold a signature or a token, and before the host there may be a password: they never
            // get into messages or records.
            Source::Http { url, .. } => {
                let shown = url.split(['?', '#']).next().unwrap_or_default();
                match shown.split_once("://") {
                    Some((scheme, rest)) => {
                        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                        write!(f, "{scheme}://{host}{path}")
                    }
                    None => f.write_str(shown),
                }
            }
            Source::Path { path } => write!(f, "path {path}"),
        }
    }
}

/// A user name and password (or token) for one registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The registry's host, with its port if it has one, and perhaps the beginning of a repository's name:
    /// `r.example:5000/team`. See [`Reference::is_for`](crate::reference::Reference::is_for).
    pub registry: String,
    /// The user name; [`IDENTITY_TOKEN`] where the password is an identity token.
    pub username: String,
    /// The password or token; never shown.
    pub password: String,
}

/// The user name that Docker's files and helpers write where they have an identity token instead of a password.
pub const IDENTITY_TOKEN: &str = "<token>";

impl Credential {
    /// The identity token, which a token server exchanges for one of its own.
    pub fn identity_token(&self) -> Option<&str> {
        (self.username == IDENTITY_TOKEN).then_some(self.password.as_str())
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("registry", &self.registry)
            .field("username", &self.username)
            .field("password", &"(redacted)")
            .finish()
    }
}

/// A reference to be resolved to a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveWant {
    /// Where it is.
    pub source: Source,
    /// Credentials to try, in order.
    pub credentials: Vec<Credential>,
}

/// An image to be made into a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageWant {
    /// Where it is.
    pub source: Source,
    /// The pinned digest: exactly this is pulled. Without it the source is resolved first.
    pub digest: Option<String>,
    /// Credentials to try, in order.
    pub credentials: Vec<Credential>,
}

/// A kernel to be unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelWant {
    /// Where it is.
    pub source: Source,
    /// The pinned digest: exactly this is pulled. Without it the source is resolved first.
    pub digest: Option<String>,
    /// Credentials to try, in order.
    pub credentials: Vec<Credential>,
    /// The kernel's path inside the artefact; searched when absent.
    pub kernel_path: Option<String>,
    /// The initrd's path inside the artefact; searched when absent.
    pub initrd_path: Option<String>,
    /// The modules' path inside the artefact; searched when absent.
    pub modules_path: Option<String>,
}

/// What a reference means now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The reference, normalised.
    pub reference: String,
    /// The identity to pull by: the digest of the platform's manifest (or of the file).
    pub digest: String,
    /// The manifest's media type.
    pub media_type: String,
    /// `os/arch[/variant]` of the manifest.
    pub platform: String,
    /// Bytes to be transferred: config and layers, compressed.
    pub compressed_size: u64,
}

/// What the image's configuration says about running it (OCI image configuration, `config`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageConfig {
    /// `Entrypoint`.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `Env`, as `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// `User`.
    #[serde(default)]
    pub user: Option<String>,
    /// `WorkingDir`.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// `StopSignal`.
    #[serde(default)]
    pub stop_signal: Option<String>,
}

/// A published, read-only disk image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageDisk {
    /// The disk identity: equal ids mean equal bytes.
    pub id: String,
    /// The manifest's digest.
    pub digest: String,
    /// The ext4 file, mode 0444.
    pub path: PathBuf,
    /// Size of the disk that a guest sees, in bytes.
    pub size_bytes: u64,
    /// Bytes that it occupies on the host.
    pub allocated_bytes: u64,
    /// How to run it.
    pub config: ImageConfig,
    /// Hash of the disk's content, taken while it was written: it tells damage.
    pub content_hash: String,
}

/// How a kernel file is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BootFormat {
    /// An ELF vmlinux with a PVH entry note.
    PvhElf,
    /// A Linux bzImage.
    BzImage,
}

/// A published kernel: read-only files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFiles {
    /// The identity: equal ids mean equal bytes.
    pub id: String,
    /// The artefact's digest.
    pub digest: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// How the kernel file is booted.
    pub boot_format: BootFormat,
    /// The kernel's release, as in `lib/modules/<version>`.
    pub version: String,
    /// A plain tar of `lib/modules/<version>/**`.
    pub modules_tar: Option<PathBuf>,
    /// An ext4 whose root is the content of `lib/modules/<version>`.
    pub modules_disk: Option<PathBuf>,
    /// The artefact's own initrd.
    pub initrd: Option<PathBuf>,
}

/// How far something wanted is. Asking never waits for a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State<T> {
    /// Under way.
    Waiting(Waiting),
    /// Here, durable, and (for images and kernels) pinned for the asker.
    Ready(Arc<T>),
    /// The last try failed; another follows at `retry_at`.
    Failed(Failure),
}

/// Something under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Where in its life.
    pub phase: Phase,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all; 0 while unknown.
    pub total_bytes: u64,
    /// One sentence for people.
    pub message: String,
}

/// Where in its life a pull under way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits for a slot.
    Queued {
        /// How many are before it.
        position: usize,
    },
    /// Is being done.
    Running,
    /// Has not been tried (again) because the registry asked for a pause.
    BackingOff {
        /// When it goes on.
        until: SystemTime,
    },
}

/// A failed try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// CamelCase, for a condition's reason.
    pub reason: String,
    /// Names the object, the cause and what to do.
    pub message: String,
    /// Whether only a change can help. It is still tried again, slowly.
    pub terminal: bool,
    /// When the next try is due.
    pub retry_at: SystemTime,
}

/// What kind of artefact the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ArtefactKind {
    /// A disk image.
    Image,
    /// A kernel with its modules.
    Kernel,
}

/// One published artefact, for inventories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// What it is.
    pub kind: ArtefactKind,
    /// Its identity in the store.
    pub id: String,
    /// The digest that it was made from.
    pub digest: String,
    /// The source that it was first pulled from, for people.
    pub source: String,
    /// Bytes occupied on the host.
    pub allocated_bytes: u64,
    /// Who has it pinned.
    pub users: Vec<Interest>,
    /// When it was last pinned or unpinned, roughly.
    pub last_used: SystemTime,
}

/// Bounds on what comes from outside. Exceeding one fails the pull with `TooLarge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a manifest, index or image configuration.
    pub manifest_bytes: u64,
    /// Layers of one image.
    pub layers: usize,
    /// Entries (files, directories, …) of one image, all layers together.
    pub entries: u64,
    /// Bytes of paths, link targets and extended attributes (128 more for each of these) of one image, all layers
    /// together: they are held in memory until the disk is finished.
    pub metadata_bytes: u64,
    /// Bytes of one path.
    pub path_bytes: usize,
    /// Bytes of one image, all layers together: uncompressed, and as they come; and bytes that its files, directories, long
    /// links and extended attributes take on the disk, rounded up to blocks.
    pub uncompressed_bytes: u64,
    /// Bytes of a zstd window.
    pub zstd_window_bytes: u64,
    /// Bytes of a kernel, as it comes and expanded: both are held in memory.
    pub kernel_bytes: u64,
    /// Bytes of a kernel's own initrd.
    pub initrd_bytes: u64,
    /// How long a transfer may stand still.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            manifest_bytes: 4 << 20,
            layers: 512,
            entries: 2_000_000,
            // 268 for each entry: an image of ordinary names meets the bound of entries first.
            metadata_bytes: 512 << 20,
            path_bytes: 4096,
            uncompressed_bytes: 64 << 30,
            zstd_window_bytes: 128 << 20,
            // A vmlinux without debug information has some 50 MiB.
            kernel_bytes: 512 << 20,
            initrd_bytes: 2 << 30,
            stall_timeout: Duration::from_secs(60),
        }
    }
}

/// Settings of the whole crate.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store's directory. Created when missing; its parent must exist and be on the same file system.
    pub dir: PathBuf,
    /// Where path sources are looked for; `None` refuses them.
    pub import_dir: Option<PathBuf>,
    /// How many images and kernels are pulled at the same time.
    pub max_parallel_pulls: usize,
    /// The platform of a source that names none, `os/arch[/variant]`.
    pub platform: String,
    /// Bounds on what comes from outside.
    pub limits: Limits,
    /// The operator's settings of registries: mirrors, authorities, proxies, logins.
    pub registries: Registries,
}

impl Config {
    /// Defaults for a store in `dir`: no imports, three pulls at a time, this machine's platform.
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        Config {
            dir: dir.into(),
            import_dir: None,
            max_parallel_pulls: 3,
            platform: host_platform(),
            limits: Limits::default(),
            registries: Registries::default(),
        }
    }
}

/// This machine's platform in OCI words (`linux/amd64`, `linux/arm64`, …).
pub fn host_platform() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    format!("linux/{arch}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_never_shows_its_password() {
        let credential = Credential {
            registry: "r.example".into(),
            username: "u".into(),
            password: "hunter2".into(),
        };
        let want = ResolveWant {
            source: Source::Path { path: "x".into() },
            credentials: vec![credential],
        };
        assert!(!format!("{want:?}").contains("hunter2"));
    }

    #[test]
    fn a_signed_url_is_shown_without_its_signature() {
        let source = Source::Http {
            url: "https://h.example/a?sig=secret#f".into(),
            sha256: String::new(),
        };
        assert_eq!(source.to_string(), "https://h.example/a");
        let source = Source::Http {
            url: "https://me:secret@h.example:8443/a@b".into(),
            sha256: String::new(),
        };
        assert_eq!(source.to_string(), "https://h.example:8443/a@b");
    }
}
