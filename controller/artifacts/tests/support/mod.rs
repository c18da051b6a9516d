//! A real registry on loopback, and artefacts pushed to it.

pub mod disk;
pub mod kernels;
pub mod raw;
pub mod scripted;
pub mod web;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use vmlet_artifacts::facade::Artifacts;
use vmlet_artifacts::reference::Digest;
use vmlet_artifacts::types::*;

const REGISTRY: &str = "/usr/bin/docker-registry";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry process with its data in a directory of its own; both go with it.
pub struct Registry {
    child: Child,
    _dir: tempfile::TempDir,
    pub address: String,
    http: reqwest::Client,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// `None`, with a word about it, where no registry is installed.
    pub fn start() -> Option<Registry> {
        if !Path::new(REGISTRY).exists() {
            println!("skipped: there is no {REGISTRY} (Debian package docker-registry)");
            return None;
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yml");
        let data = dir.path().join("data");
        let text = format!(
            "version: 0.1\nlog: {{level: info, formatter: json, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n",
            data.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(REGISTRY)
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("listening on ")?.1.split('"').next()?.to_owned()))
            .expect("the registry says where it listens");
        // Its log must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Registry {
            child,
            _dir: dir,
            address,
            http: reqwest::Client::new(),
        })
    }

    /// Pushes a blob; answers with its descriptor.
    pub async fn blob(&self, repository: &str, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::sha256(bytes).to_string();
        let start = format!("http://{}/v2/{repository}/blobs/uploads/", self.address);
        let begun = self.http.post(start).send().await.unwrap().error_for_status().unwrap();
        let mut to = begun.url().join(begun.headers()["location"].to_str().unwrap()).unwrap();
        to.query_pairs_mut().append_pair("digest", &digest);
        self.http
            .put(to)
            .body(bytes.to_vec())
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Pushes a manifest; answers with its digest.
    pub async fn manifest(&self, repository: &str, tag: &str, media_type: &str, manifest: &Value) -> String {
        let bytes = serde_json::to_vec(manifest).unwrap();
        let digest = Digest::sha256(&bytes).to_string();
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.address);
        let put = self.http.put(url).header("content-type", media_type).body(bytes);
        put.send().await.unwrap().error_for_status().unwrap();
        digest
    }

    /// Pushes an image made of plain tars, compressed with gzip (even places) and zstd (odd ones).
    pub async fn image(&self, repository: &str, tars: &[Vec<u8>]) -> String {
        let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::sha256(tar).to_string()).collect();
        self.image_with(repository, tars, &diff_ids).await
    }

    /// The same with these words about what the layers are.
    pub async fn image_with(&self, repository: &str, tars: &[Vec<u8>], diff_ids: &[String]) -> String {
        let config = json!({
            "os": "linux", "architecture": "amd64",
            "config": { "Entrypoint": ["/bin/app"], "Env": ["A=b"], "User": "app", "WorkingDir": "/srv" },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self
            .blob(
                repository,
                "application/vnd.oci.image.config.v1+json",
                &serde_json::to_vec(&config).unwrap(),
            )
            .await;
        let mut layers = Vec::new();
        for (at, tar) in tars.iter().enumerate() {
            let layer = if at % 2 == 0 {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(tar).unwrap();
                self.blob(
                    repository,
                    "application/vnd.oci.image.layer.v1.tar+gzip",
                    &gzip.finish().unwrap(),
                )
                .await
            } else {
                let zstd = zstd::encode_all(&tar[..], 1).unwrap();
                self.blob(repository, "application/vnd.oci.image.layer.v1.tar+zstd", &zstd)
                    .await
            };
            layers.push(layer);
        }
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        self.manifest(repository, "latest", MANIFEST, &manifest).await
    }

    pub fn source(&self, repository: &str) -> Source {
        Source::Oci {
            reference: format!("{}/{repository}:latest", self.address),
            platform: Some("linux/amd64".into()),
        }
    }
}

/// Builds tars.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_700_000_000);
        header.set_size(size as u64);
        header
    }

    pub fn dir(mut self, path: &str) -> Tar {
        let mut header = Tar::header(tar::EntryType::Directory, 0o755, 0);
        self.0.append_data(&mut header, path, &[][..]).unwrap();
        self
    }

    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Tar {
        let mut header = Tar::header(tar::EntryType::Regular, mode, content.len());
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    pub fn symlink(mut self, path: &str, target: &str) -> Tar {
        let mut header = Tar::header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn hardlink(mut self, path: &str, target: &str) -> Tar {
        let mut header = Tar::header(tar::EntryType::Link, 0o644, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// What debugfs answers.
pub fn debugfs(disk: &Path, command: &str) -> String {
    let output = Command::new("debugfs")
        .args(["-R", command])
        .arg(disk)
        .env("PATH", PATH)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Fails unless e2fsck finds nothing to say.
pub fn check(disk: &Path) {
    let output = Command::new("e2fsck")
        .arg("-fn")
        .arg(disk)
        .env("PATH", PATH)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Asks until the answer is no longer "wait".
pub async fn settle<T, F: Future<Output = State<T>>>(
    woken: &mut mpsc::Receiver<Interest>,
    mut ask: impl FnMut() -> F,
) -> Result<std::sync::Arc<T>, Failure> {
    let asking = async {
        loop {
            match ask().await {
                State::Ready(value) => return Ok(value),
                State::Failed(failure) => return Err(failure),
                State::Waiting(_) => woken.recv().await.expect("the handle lives"),
            };
        }
    };
    tokio::time::timeout(Duration::from_secs(120), asking)
        .await
        .expect("it ends")
}

/// Pulls an image for `who` until it is there or has failed. e2fsck has nothing to say about it.
pub async fn image(
    artifacts: &Artifacts,
    woken: &mut mpsc::Receiver<Interest>,
    who: &str,
    source: Source,
) -> Result<std::sync::Arc<ImageDisk>, Failure> {
    let who = Interest(who.into());
    let want = ImageWant {
        source,
        digest: None,
        credentials: Vec::new(),
    };
    wanted(artifacts, woken, &who, &want).await
}

/// The same for a want of its own.
pub async fn wanted(
    artifacts: &Artifacts,
    woken: &mut mpsc::Receiver<Interest>,
    who: &Interest,
    want: &ImageWant,
) -> Result<std::sync::Arc<ImageDisk>, Failure> {
    let disk = settle(woken, || artifacts.ensure_image(who, want.clone())).await?;
    check(&disk.path);
    Ok(disk)
}

/// A handle over a store in `dir/artifacts` with imports from `dir/import`, for linux/amd64.
pub async fn open_with_import(dir: &Path) -> (Artifacts, mpsc::Receiver<Interest>) {
    let (wake, woken) = mpsc::channel(16);
    let mut config = Config::new(dir.join("artifacts"));
    let import = dir.join("import");
    std::fs::create_dir_all(&import).unwrap();
    config.import_dir = Some(import);
    config.platform = "linux/amd64".into();
    (Artifacts::open(config, wake).await.unwrap(), woken)
}

pub fn path(path: &str) -> Source {
    Source::Path { path: path.into() }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A tar of an OCI image layout, or (`docker`) what `docker save` makes of the same image.
pub fn archive(tars: &[Vec<u8>], docker: bool) -> Vec<u8> {
    let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::sha256(tar).to_string()).collect();
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": { "Cmd": ["/bin/app"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = serde_json::to_vec(&config).unwrap();
    let hex = |bytes: &[u8]| Digest::sha256(bytes).hex().to_owned();
    let mut out = Tar::new();
    if docker {
        let mut names = Vec::new();
        for (at, tar) in tars.iter().enumerate() {
            // The first layer's file is elsewhere, as with images that share layers.
            let (name, place) = (format!("{}/layer.tar", hex(&[at as u8])), format!("{}.tar", hex(tar)));
            out = if at == 0 {
                out.file(&place, 0o644, tar).symlink(&name, &format!("../{place}"))
            } else {
                out.file(&name, 0o644, tar)
            };
            names.push(name);
        }
        let config_name = format!("{}.json", hex(&config));
        let manifest = json!([{ "Config": config_name, "RepoTags": ["app:1"], "Layers": names }]);
        return out
            .file(&config_name, 0o644, &config)
            .file("manifest.json", 0o644, &serde_json::to_vec(&manifest).unwrap())
            .done();
    }
    let mut blobs = Vec::new();
    let mut blob = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        blobs.push((format!("blobs/sha256/{}", digest.hex()), bytes.to_vec()));
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    };
    let config = blob("application/vnd.oci.image.config.v1+json", &config);
    let layers: Vec<Value> = tars
        .iter()
        .map(|tar| blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(tar)))
        .collect();
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    let manifest = blob(MANIFEST, &serde_json::to_vec(&manifest).unwrap());
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    for (name, bytes) in &blobs {
        out = out.file(name, 0o644, bytes);
    }
    out.file("index.json", 0o644, &serde_json::to_vec(&index).unwrap())
        .file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)
        .done()
}

/// A handle over an empty store in `dir`.
pub async fn open(dir: &Path) -> (Artifacts, mpsc::Receiver<Interest>) {
    let (wake, woken) = mpsc::channel(16);
    (
        Artifacts::open(Config::new(dir.join("artifacts")), wake).await.unwrap(),
        woken,
    )
}
