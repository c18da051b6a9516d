//! The images that are measured, made of Debian packages as OCI layouts. The same packages give the same bytes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::layer::{Blob, Layer, Made, digest};

/// Names of the images; each is a layout of that name in the set's directory.
pub const IMAGES: [&str; 6] = ["plain", "plain-zstd", "plain-tar", "derived", "minimal", "twice"];
const SMALL_FILES: usize = 10_000;

/// Where the packages are and where the set goes.
#[derive(Args)]
pub struct ImageSet {
    /// Directory of the .deb files of a minimal system.
    #[arg(long)]
    base: PathBuf,
    /// Directory of the .deb files that are added to it.
    #[arg(long)]
    app: PathBuf,
    /// Directory of the .deb files of the image of one layer.
    #[arg(long)]
    minimal: PathBuf,
    /// Directory to make.
    #[arg(long)]
    output: PathBuf,
}

/// Makes the set.
pub fn make(args: &ImageSet) -> Result<()> {
    let work = &args.output;
    fs::create_dir(work).with_context(|| work.display().to_string())?;
    let blobs = work.join("blobs");
    fs::create_dir(&blobs)?;

    let mut base = Layer::begin(work)?;
    for dir in ["bin", "lib", "lib64", "sbin"] {
        let header = Layer::header(EntryType::Symlink, 0o777);
        base.link(dir, header, &format!("usr/{dir}"))?;
    }
    packages(&mut base, &args.base)?;
    for (dir, mode) in [("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("tmp", 0o1777)] {
        base.directory(dir, mode)?;
    }
    let gone = whiteouts(&base);
    let small = std::mem::take(&mut base.small);
    let base = base.finish(&blobs)?;

    let mut app = Layer::begin(work)?;
    packages(&mut app, &args.app)?;
    let more = std::mem::take(&mut app.small);
    let app = app.finish(&blobs)?;

    let mut cleanup = Layer::begin(work)?;
    for name in gone {
        cleanup.file(&name, 0o600, b"")?;
    }
    let cleanup = cleanup.finish(&blobs)?;
    let special = special(work)?.finish(&blobs)?;

    let mut files = Layer::begin(work)?;
    for (at, content) in small
        .values()
        .chain(more.values())
        .cycle()
        .take(SMALL_FILES)
        .enumerate()
    {
        let path = format!("srv/app/node_modules/package-{:03}/lib/file-{at:05}.js", at / 25);
        files.file(&path, 0o644, content)?;
    }
    let files = files.finish(&blobs)?;

    let kept = || {
        small
            .iter()
            .filter(|(path, _)| path.starts_with("usr/lib/") || path.starts_with("etc/"))
    };
    let changes = |every: usize, line: &str| -> Result<Made> {
        let mut changes = Layer::begin(work)?;
        for (path, content) in kept().step_by(every) {
            changes.file(path, 0o644, &[content.as_slice(), line.as_bytes()].concat())?;
        }
        changes.finish(&blobs)
    };
    let changed = changes(3, "# changed\n")?;
    let derived = changes(5, "# derived\n")?;

    let mut minimal = Layer::begin(work)?;
    packages(&mut minimal, &args.minimal)?;
    let minimal = minimal.finish(&blobs)?;
    let mut twice = Layer::begin(work)?;
    for content in ["first\n", "the last one counts\n"] {
        twice.file("etc/twice", 0o644, content.as_bytes())?;
    }
    let twice = twice.finish(&blobs)?;

    let plain = [&base, &app, &cleanup, &special, &files, &changed];
    let form = |name: &str, kind: &str, form: fn(&Made) -> &Blob| image(work, name, kind, form, &plain);
    form("plain", "tar+gzip", |made| &made.gzip)?;
    form("plain-zstd", "tar+zstd", |made| &made.zstd)?;
    form("plain-tar", "tar", |made| &made.tar)?;
    let layers = [&plain[..], &[&derived]].concat();
    image(work, "derived", "tar+gzip", |made| &made.gzip, &layers)?;
    image(work, "minimal", "tar+gzip", |made| &made.gzip, &[&minimal])?;
    // What some tools refuse has an image of its own, so that they can be measured on the others.
    image(work, "twice", "tar+gzip", |made| &made.gzip, &[&minimal, &twice])
}

/// All packages of a directory, in the order of their names.
fn packages(layer: &mut Layer, dir: &Path) -> Result<()> {
    let mut debs: Vec<PathBuf> = fs::read_dir(dir)
        .with_context(|| dir.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    debs.retain(|path| path.extension().is_some_and(|end| end == "deb"));
    debs.sort();
    ensure!(!debs.is_empty(), "{} holds no .deb files", dir.display());
    debs.iter().try_for_each(|deb| layer.package(deb))
}

/// Marks for what a clean-up deletes from `base`: documents one by one, one directory as a whole.
fn whiteouts(base: &Layer) -> Vec<String> {
    let documents = base
        .below("usr/share/doc")
        .map(|name| format!("usr/share/doc/.wh.{name}"));
    let opaque = [
        "usr/share/man/.wh..wh..opq".to_owned(),
        "usr/share/.wh.locale".to_owned(),
    ];
    documents.chain(opaque).collect()
}

/// What is not a plain file: devices, pipes, links, attributes, long names.
fn special(work: &Path) -> Result<Layer> {
    let mut layer = Layer::begin(work)?;
    for (name, kind, major, minor) in [
        ("null", EntryType::Char, 1, 3),
        ("zero", EntryType::Char, 1, 5),
        ("console", EntryType::Char, 5, 1),
        ("loop0", EntryType::Block, 7, 0),
        ("nvme0n1p300", EntryType::Block, 259, 300),
    ] {
        let mut header = Layer::header(kind, 0o660);
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        layer.other(&format!("srv/special/dev/{name}"), header)?;
    }
    layer.other("srv/special/pipe", Layer::header(EntryType::Fifo, 0o600))?;
    layer.file("srv/special/setuid", 0o4755, b"#!/bin/sh\n")?;
    layer.file("srv/special/linked", 0o644, b"one inode, many names\n")?;
    for at in 0..100 {
        let header = Layer::header(EntryType::Link, 0o644);
        layer.link(&format!("srv/special/names/{at:03}"), header, "srv/special/linked")?;
    }
    // cap_net_bind_service, permitted and effective (version 2).
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    layer.file_with(
        "srv/special/capable",
        0o755,
        b"#!/bin/sh\n",
        &[("security.capability", &capability)],
    )?;
    layer.file_with(
        "srv/special/noted",
        0o644,
        b"",
        &[("user.comment", b"with an attribute")],
    )?;
    let header = Layer::header(EntryType::Symlink, 0o777);
    layer.link("srv/special/far", header, &format!("/{}", "far/".repeat(300)))?;
    let deep = format!("srv/special/{}{}", "directory/".repeat(20), "n".repeat(200));
    layer.file(&deep, 0o644, b"deep\n")?;
    let mut header = Layer::header(EntryType::Directory, 0o700);
    header.set_uid(1_000_000);
    header.set_gid(70_000);
    layer.other("srv/special/theirs", header)?;
    Ok(layer)
}

/// One image as a layout of its own; its blobs are hard links.
fn image(work: &Path, name: &str, kind: &str, form: fn(&Made) -> &Blob, layers: &[&Made]) -> Result<()> {
    let layout = work.join(name);
    let own = layout.join("blobs/sha256");
    fs::create_dir_all(&own)?;
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2023-11-14T22:13:20Z",
        "config": {"Cmd": ["/bin/bash"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
    });
    let config = small(&own, config.to_string().as_bytes())?;
    let described: Vec<_> = layers
        .iter()
        .map(|layer| described(&format!("application/vnd.oci.image.layer.v1.{kind}"), form(layer)))
        .collect();
    for layer in layers {
        let file = form(layer).digest.trim_start_matches("sha256:");
        fs::hard_link(work.join("blobs").join(file), own.join(file))?;
    }
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest_type,
        "config": self::described("application/vnd.oci.image.config.v1+json", &config), "layers": described,
    });
    let manifest = small(&own, manifest.to_string().as_bytes())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({"schemaVersion": 2, "manifests": [self::described(manifest_type, &manifest)]});
    fs::write(layout.join("index.json"), index.to_string())?;
    let compressed: u64 = layers.iter().map(|layer| form(layer).size).sum();
    let tar: u64 = layers.iter().map(|layer| layer.tar.size).sum();
    let entries: usize = layers.iter().map(|layer| layer.entries).sum();
    let summary = format!(
        "{} layers, {:.1} MB, {:.1} MB inflated, {entries} entries",
        layers.len(),
        compressed as f64 / 1e6,
        tar as f64 / 1e6
    );
    Ok(fs::write(layout.join("summary"), summary)?)
}

fn described(media_type: &str, blob: &Blob) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size})
}

fn small(dir: &Path, bytes: &[u8]) -> Result<Blob> {
    let digest = digest(Sha256::new_with_prefix(bytes));
    fs::write(dir.join(digest.trim_start_matches("sha256:")), bytes)?;
    Ok(Blob {
        digest,
        size: bytes.len() as u64,
    })
}
