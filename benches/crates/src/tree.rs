//! Layers put together: names as mkext4's builder takes them, contents in the spool.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Read};

use anyhow::{Context, Result, bail};
use mkext4::{FsBuilder, InodeHandle, Meta, Options, ROOT, SpecialKind};
use tar::{Entry, EntryType};

/// Content of a file: its inode, offset and size in the spool.
pub type Content = (InodeHandle, u64, u64);

pub struct Tree {
    builder: FsBuilder,
    /// What is at each path, and whether it is a directory.
    names: BTreeMap<String, (InodeHandle, bool)>,
    contents: Vec<Content>,
    spool: BufWriter<File>,
    end: u64,
}

impl Tree {
    pub fn new(bytes: u64, spool: BufWriter<File>) -> Result<Tree> {
        Ok(Tree {
            builder: FsBuilder::new(Options::new(bytes, [7; 16], 1_700_000_000))?,
            names: BTreeMap::new(),
            contents: Vec::new(),
            spool,
            end: 0,
        })
    }

    /// The builder, what is still named of the contents, and the spool.
    pub fn finish(mut self) -> (FsBuilder, Vec<Content>, BufWriter<File>) {
        let live: HashSet<InodeHandle> = self.names.values().map(|(handle, _)| *handle).collect();
        self.contents
            .retain(|(handle, _, size)| *size > 0 && live.contains(handle));
        (self.builder, self.contents, self.spool)
    }

    /// Applies a layer.
    pub fn layer(&mut self, tar: &mut dyn Read) -> Result<()> {
        let mut archive = tar::Archive::new(tar);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_str().context("a name is not UTF-8")?.to_owned();
            let path = path.trim_start_matches("./").trim_matches('/').to_owned();
            self.entry(&path, &mut entry).with_context(|| path.clone())?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, entry: &mut Entry<'_, impl Read>) -> Result<()> {
        let meta = meta(entry)?;
        if path.is_empty() {
            return Ok(self.builder.set_meta(ROOT, meta)?);
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name == ".wh..wh..opq" {
            return self.empty(above);
        }
        if let Some(gone) = name.strip_prefix(".wh.") {
            return self.remove(&join(above, gone));
        }
        let kind = entry.header().entry_type();
        let here = self.names.get(path).copied();
        if let Some((handle, true)) = here
            && kind.is_dir()
        {
            return Ok(self.builder.set_meta(handle, meta)?);
        }
        if here.is_some() {
            self.remove(path)?;
        }
        let parent = self.directory(above)?;
        let builder = &mut self.builder;
        let device = || -> Result<(u32, u32)> {
            let (major, minor) = (entry.header().device_major()?, entry.header().device_minor()?);
            Ok((major.unwrap_or(0), minor.unwrap_or(0)))
        };
        let handle = match kind {
            EntryType::Directory => builder.mkdir(parent, name, meta)?,
            EntryType::Symlink => builder.symlink(parent, name, &target(entry)?, meta)?,
            EntryType::Link => {
                let target = target(entry)?;
                let target = target.trim_start_matches("./").trim_start_matches('/');
                let (handle, _) = *self.names.get(target).context("a hard link to nothing")?;
                builder.hardlink(parent, name, handle)?;
                handle
            }
            EntryType::Char => {
                let (major, minor) = device()?;
                builder.mknod(parent, name, meta, SpecialKind::Char { major, minor })?
            }
            EntryType::Block => {
                let (major, minor) = device()?;
                builder.mknod(parent, name, meta, SpecialKind::Block { major, minor })?
            }
            EntryType::Fifo => builder.mknod(parent, name, meta, SpecialKind::Fifo)?,
            EntryType::Regular | EntryType::Continuous => {
                let size = entry.size();
                let handle = builder.file(parent, name, meta, size)?;
                self.contents.push((handle, self.end, size));
                self.end += io::copy(entry, &mut self.spool)?;
                for extension in entry.pax_extensions()?.into_iter().flatten() {
                    let extension = extension?;
                    if let Some(name) = extension.key()?.strip_prefix("SCHILY.xattr.") {
                        builder.set_xattr(handle, name, extension.value_bytes())?;
                    }
                }
                handle
            }
            kind => bail!("a member of the type {kind:?}"),
        };
        self.names.insert(path.to_owned(), (handle, kind.is_dir()));
        Ok(())
    }

    /// A directory, made with its parents if it is not there.
    fn directory(&mut self, path: &str) -> Result<InodeHandle> {
        match self.names.get(path) {
            _ if path.is_empty() => Ok(ROOT),
            Some((handle, true)) => Ok(*handle),
            Some(_) => bail!("{path} is no directory"),
            None => {
                let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
                let parent = self.directory(above)?;
                let handle = self.builder.mkdir(parent, name, Meta::new(0o755, 0, 0, (0, 0)))?;
                self.names.insert(path.to_owned(), (handle, true));
                Ok(handle)
            }
        }
    }

    /// Removes what is at a path with all that is below it; nothing there is as good.
    fn remove(&mut self, path: &str) -> Result<()> {
        if self.names.remove(path).is_none() {
            return Ok(());
        }
        for below in self.below(path) {
            self.names.remove(&below);
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.directory(above)?;
        Ok(self.builder.remove(parent, name)?)
    }

    /// Removes all that is below a directory.
    fn empty(&mut self, path: &str) -> Result<()> {
        let below = self.below(path);
        let direct = |below: &&String| !below[path.len() + usize::from(!path.is_empty())..].contains('/');
        below.iter().filter(direct).try_for_each(|child| self.remove(child))
    }

    fn below(&self, path: &str) -> Vec<String> {
        let prefix = join(path, "");
        let names = self.names.range(prefix.clone()..).map(|(name, _)| name);
        names.take_while(|name| name.starts_with(&prefix)).cloned().collect()
    }
}

fn join(above: &str, name: &str) -> String {
    if above.is_empty() {
        name.to_owned()
    } else {
        format!("{above}/{name}")
    }
}

fn target(entry: &Entry<'_, impl Read>) -> Result<String> {
    let target = entry.link_name()?.context("a link without a target")?;
    Ok(target.to_str().context("a target is not UTF-8")?.to_owned())
}

fn meta(entry: &Entry<'_, impl Read>) -> Result<Meta> {
    let header = entry.header();
    let id = |id: u64| u32::try_from(id).context("an id does not fit");
    let time = i64::try_from(header.mtime()?).context("a time does not fit")?;
    Ok(Meta::new(
        (header.mode()? & 0o7777) as u16,
        id(header.uid()?)?,
        id(header.gid()?)?,
        (time, 0),
    ))
}
