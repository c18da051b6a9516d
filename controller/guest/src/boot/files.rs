//! Files inside the mounted root, never outside it, whatever its symbolic links say.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, mkdirat, openat, openat2, renameat,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::failure::at;

/// The name of a file that is being written, beside its place.
const TEMPORARY: &str = ".vmlet-init.tmp";

/// A mounted root.
pub struct Root(OwnedFd);

/// Attributes of a file to write.
#[derive(Clone, Copy)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Attributes {
    /// Of a file of root's.
    pub fn root(mode: u32) -> Attributes {
        Attributes { mode, uid: 0, gid: 0 }
    }
}

impl Root {
    /// The root at this place.
    pub fn open(path: &str) -> io::Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root(rustix::fs::open(path, flags, Mode::empty()).map_err(at(path))?))
    }

    /// A directory, made if it is missing (and its parents with 0755).
    pub fn directory(&self, path: &str, mode: u32) -> io::Result<OwnedFd> {
        let names: Vec<&str> = components(path)?;
        let mut current = self.resolve(".", OFlags::PATH | OFlags::DIRECTORY).map_err(at(path))?;
        let mut prefix = String::from(".");
        for (index, name) in names.iter().enumerate() {
            prefix.push('/');
            prefix.push_str(name);
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            // Always from the root: resolved from `current`, an absolute link would mean something else.
            current = match self.resolve(&prefix, flags) {
                Err(Errno::NOENT) => {
                    let mode = if index + 1 == names.len() { mode } else { 0o755 };
                    mkdirat(&current, *name, Mode::from_raw_mode(mode)).map_err(at(format_args!("make {path}")))?;
                    self.resolve(&prefix, flags).map_err(at(path))?
                }
                other => other.map_err(at(path))?,
            };
        }
        Ok(current)
    }

    /// Writes a file whole or not at all. What stands at its name is replaced, a link as such;
    /// nothing is written when the file is already as it should be.
    pub fn write(&self, path: &str, content: &[u8], attributes: Attributes) -> io::Result<()> {
        let (parent, name) = parent_and_name(path)?;
        let parent = self.directory(parent, 0o755)?;
        if is_as_wanted(&parent, name, content, attributes) {
            return Ok(());
        }
        let _ = unlinkat(&parent, TEMPORARY, AtFlags::empty());
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let file =
            openat(&parent, TEMPORARY, flags, Mode::from_raw_mode(0o600)).map_err(at(format_args!("write {path}")))?;
        let mut file = File::from(file);
        let written = file.write_all(content).and_then(|()| {
            fchown(
                &file,
                Some(Uid::from_raw(attributes.uid)),
                Some(Gid::from_raw(attributes.gid)),
            )?;
            fchmod(&file, Mode::from_raw_mode(attributes.mode & 0o7777))?;
            renameat(&parent, TEMPORARY, &parent, name).map_err(at(format_args!("write {path}")))
        });
        if written.is_err() {
            let _ = unlinkat(&parent, TEMPORARY, AtFlags::empty());
        }
        written
    }

    /// The content of a regular file, up to `limit` bytes. None: there is none (or a larger one).
    pub fn read(&self, path: &str, limit: usize) -> Option<Vec<u8>> {
        let file = self
            .resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
            .ok()?;
        read_regular(file, limit)
    }

    /// Whether a path leads to a regular file that root could execute.
    pub fn is_executable(&self, path: &str) -> bool {
        self.resolve(path, OFlags::PATH).and_then(fstat).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0
        })
    }

    fn resolve(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), how)
    }
}

fn is_as_wanted(parent: impl AsFd, name: &str, content: &[u8], attributes: Attributes) -> bool {
    let Ok(stat) = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) else {
        return false;
    };
    let same = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_mode & 0o7777 == attributes.mode & 0o7777
        && (stat.st_uid, stat.st_gid) == (attributes.uid, attributes.gid)
        && stat.st_size == content.len() as i64;
    same && openat(
        &parent,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()
    .and_then(|file| read_regular(file, content.len()))
    .is_some_and(|there| there == content)
}

fn read_regular(file: OwnedFd, limit: usize) -> Option<Vec<u8>> {
    let stat = fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut content = Vec::new();
    File::from(file).take(limit as u64 + 1).read_to_end(&mut content).ok()?;
    (content.len() <= limit).then_some(content)
}

/// The names that a path consists of. `..` is refused: nobody who writes a file means it.
fn components(path: &str) -> io::Result<Vec<&str>> {
    let names: Vec<&str> = path
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .collect();
    if names.contains(&"..") || path.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{path:?} is not a plain absolute path"),
        ));
    }
    Ok(names)
}

fn parent_and_name(path: &str) -> io::Result<(&str, &str)> {
    let invalid = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{path:?} is not the absolute path of a file"),
        )
    };
    components(path)?;
    let (parent, name) = path.rsplit_once('/').ok_or_else(invalid)?;
    if !Path::new(path).is_absolute() || name.is_empty() || name == "." {
        return Err(invalid());
    }
    Ok((parent, name))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn me(mode: u32) -> Attributes {
        Attributes {
            mode,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        }
    }

    struct Fixture {
        outside: tempfile::TempDir,
        root: Root,
    }

    impl Fixture {
        fn new() -> Fixture {
            let outside = tempfile::tempdir().expect("a directory");
            fs::create_dir(outside.path().join("root")).expect("a root");
            let root = Root::open(outside.path().join("root").to_str().expect("utf-8")).expect("opens");
            Fixture { outside, root }
        }

        fn path(&self, path: &str) -> std::path::PathBuf {
            self.outside.path().join("root").join(path)
        }
    }

    #[test]
    fn a_file_is_written_with_its_parents_and_attributes() {
        let f = Fixture::new();
        f.root.write("/a/b/c", b"x", me(0o640)).expect("written");
        assert_eq!(fs::read(f.path("a/b/c")).expect("there"), b"x");
        assert_eq!(
            fs::metadata(f.path("a/b/c")).expect("there").permissions().mode() & 0o7777,
            0o640
        );
        assert_eq!(fs::read_dir(f.path("a/b")).expect("there").count(), 1);
    }

    #[test]
    fn a_link_at_the_name_is_replaced_and_its_target_left_alone() {
        let f = Fixture::new();
        let victim = f.outside.path().join("victim");
        fs::write(&victim, "host").expect("written");
        symlink(&victim, f.path("file")).expect("linked");
        f.root.write("/file", b"guest", me(0o644)).expect("written");
        assert_eq!(fs::read_to_string(&victim).expect("there"), "host");
        assert!(fs::symlink_metadata(f.path("file")).expect("there").is_file());
    }

    #[test]
    fn links_among_the_parents_stay_inside_the_root() {
        let f = Fixture::new();
        fs::create_dir(f.path("real")).expect("made");
        symlink("/real", f.path("absolute")).expect("linked");
        symlink("../../../real", f.path("climbing")).expect("linked");
        f.root.write("/absolute/one", b"1", me(0o644)).expect("written");
        f.root.write("/climbing/two", b"2", me(0o644)).expect("written");
        assert_eq!(fs::read_dir(f.path("real")).expect("there").count(), 2);
        assert_eq!(f.root.read("/climbing/one", 10).as_deref(), Some(b"1".as_slice()));
    }

    #[test]
    fn a_dangling_parent_is_an_error_and_makes_nothing() {
        let f = Fixture::new();
        symlink("/nowhere", f.path("dangling")).expect("linked");
        assert!(f.root.write("/dangling/file", b"x", me(0o644)).is_err());
        assert_eq!(fs::read_dir(f.outside.path()).expect("there").count(), 1);
    }

    #[test]
    fn a_directory_at_the_name_is_an_error_and_leaves_no_temporary() {
        let f = Fixture::new();
        fs::create_dir(f.path("d")).expect("made");
        assert!(f.root.write("/d", b"x", me(0o644)).is_err());
        assert_eq!(fs::read_dir(f.path("")).expect("there").count(), 1);
    }

    #[test]
    fn paths_that_are_not_plain_are_refused() {
        let f = Fixture::new();
        for path in ["", "/", "relative", "/a/../../b", "/a/", "/a/."] {
            assert!(f.root.write(path, b"x", me(0o644)).is_err(), "{path:?}");
        }
    }

    #[test]
    fn an_unchanged_file_is_not_written_again() {
        let f = Fixture::new();
        f.root.write("/f", b"x", me(0o644)).expect("written");
        let inode = fs::metadata(f.path("f")).expect("there").ino();
        f.root.write("/f", b"x", me(0o644)).expect("written");
        assert_eq!(fs::metadata(f.path("f")).expect("there").ino(), inode);
        f.root.write("/f", b"x", me(0o600)).expect("written");
        assert_eq!(fs::metadata(f.path("f")).expect("there").mode() & 0o7777, 0o600);
    }

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let f = Fixture::new();
        fs::write(f.path("f"), "12345").expect("written");
        rustix::fs::mkfifoat(rustix::fs::CWD, f.path("fifo"), Mode::from_raw_mode(0o644)).expect("made");
        assert_eq!(f.root.read("/f", 5).as_deref(), Some(b"12345".as_slice()));
        assert_eq!(
            [f.root.read("/f", 4), f.root.read("/fifo", 9), f.root.read("/none", 9)],
            [None, None, None]
        );
    }

    #[test]
    fn an_init_is_found_through_links_of_the_image() {
        let f = Fixture::new();
        fs::create_dir_all(f.path("lib/systemd")).expect("made");
        fs::create_dir(f.path("sbin")).expect("made");
        fs::write(f.path("lib/systemd/systemd"), "").expect("written");
        symlink("/lib/systemd/systemd", f.path("sbin/init")).expect("linked");
        assert!(!f.root.is_executable("/sbin/init"), "not executable yet");
        fs::set_permissions(f.path("lib/systemd/systemd"), fs::Permissions::from_mode(0o755)).expect("set");
        assert!(f.root.is_executable("/sbin/init"));
        assert!(!f.root.is_executable("/sbin"));
    }
}
