//! `vmlet logs`: the console log of a VM that runs, or ran, on this machine.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::ResourceExt;

use crate::cli::Logs;
use crate::vm;

/// How often a followed log is looked at.
const FOLLOW: Duration = Duration::from_millis(300);
/// Most bytes that are read of one log at once: both files of a run, and some.
const MOST: u64 = 16 << 20;

/// Prints the console log.
pub async fn logs(args: Logs) -> Result<()> {
    let vm = vm::get(&args.vm).await?;
    let name = vm.name_any();
    let uid = vm.uid().unwrap_or_default();
    let machines = args.data_dir.join("machines");
    let Some(files) = vmlet_machines::console_files(&machines, &uid) else {
        bail!("\"{name}\" has the uid {uid:?}, which no machine can have");
    };
    let wanted = if args.previous { &files.previous } else { &files.latest };
    let mut log = Log::default();
    let mut text = log.news(wanted)?.bytes;
    let here = is_there(&machines.join(&uid))?;
    if log.at.is_none() && !args.follow {
        match (here, args.previous) {
            (false, _) => bail!(
                "no console log of \"{name}\": {}",
                vm::nothing_below(&vm, &args.data_dir)
            ),
            (true, true) => bail!(
                "no console log of an earlier run of \"{name}\": it has run once at most, or the run before printed nothing"
            ),
            (true, false) => eprintln!(
                "vmlet: nothing on the console of \"{name}\" in its latest run yet (of one that was silent, news comes up to 16 s late)"
            ),
        }
    }
    if let Some(lines) = args.tail {
        text = last_lines(&text, lines).to_vec();
    }
    let mut out = io::stdout();
    print(&mut out, &text)?;
    if !args.follow {
        return Ok(());
    }
    let mut was_here = here;
    loop {
        tokio::time::sleep(FOLLOW).await;
        let news = log.news(wanted)?;
        if news.gap {
            eprintln!("vmlet: the guest printed faster than this could read; some of it is gone");
        }
        if news.new_run {
            eprintln!("vmlet: a new run of \"{name}\" begins");
        }
        print(&mut out, &news.bytes)?;
        let is_here = is_there(&machines.join(&uid))?;
        if was_here && !is_here {
            eprintln!("vmlet: \"{name}\" has been deleted");
            return Ok(());
        }
        was_here = is_here;
    }
}

/// Writes to somebody who may have had enough.
fn print(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // The reader of a pipe went away: there is nobody left to tell.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.context("standard output"),
    }
}

fn is_there(dir: &Path) -> Result<bool> {
    match dir.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(refused(dir, error)),
    }
}

fn refused(path: &Path, error: io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => " (the data directory belongs to the agent's user: run this as that user)",
        _ => "",
    };
    anyhow::anyhow!("{}: {error}{remedy}", path.display())
}

/// The last so many lines; one that is not ended yet counts.
fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    if lines == 0 {
        return b"";
    }
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    match ends.map(|(at, _)| at).nth(lines - 1) {
        Some(at) => &text[at + 1..],
        None => text,
    }
}

/// A log that is read on, however its files are renamed meanwhile.
#[derive(Default)]
struct Log {
    /// The file that was read last (inode), and how far.
    at: Option<(u64, u64)>,
}

/// What was written since the last look.
#[derive(Debug, Default, PartialEq)]
struct News {
    bytes: Vec<u8>,
    /// The file that was read last is no part of this run's log any more.
    new_run: bool,
    /// Between what was read and what is there something is missing.
    gap: bool,
}

impl Log {
    /// Reads on. `files` is the newest and the one before it; what is not there is empty.
    fn news(&mut self, files: &[PathBuf; 2]) -> Result<News> {
        // The newest first: one that is renamed meanwhile is found twice, and not missed.
        let mut open: VecDeque<(u64, File)> = VecDeque::new();
        for path in files {
            match File::open(path) {
                Ok(file) => {
                    let inode = file.metadata()?.ino();
                    if open.iter().all(|(other, _)| *other != inode) {
                        open.push_front((inode, file));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(refused(path, error)),
            }
        }
        let mut news = News::default();
        let known = self
            .at
            .and_then(|(inode, _)| open.iter().position(|(i, _)| *i == inode));
        match known {
            Some(position) => drop(open.drain(..position)),
            None if self.at.is_some() && !open.is_empty() => {
                // In one run files are renamed one by one. Two of them at once: the run went on too fast.
                (news.new_run, news.gap) = (open.len() == 1, open.len() > 1);
                self.at = None;
            }
            None => {}
        }
        for (inode, mut file) in open {
            let from = self
                .at
                .filter(|(known, _)| *known == inode)
                .map_or(0, |(_, offset)| offset);
            file.seek(SeekFrom::Start(from))?;
            let count = file.take(MOST).read_to_end(&mut news.bytes)?;
            self.at = Some((inode, from + count as u64));
        }
        Ok(news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_counted_as_tail_counts_them() {
        for (text, lines, want) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\n", 5, "a\n"),
            ("\n\n", 1, "\n"),
            ("a\nb\n", 0, ""),
            ("", 3, ""),
        ] {
            assert_eq!(last_lines(text.as_bytes(), lines), want.as_bytes(), "{text:?} {lines}");
        }
    }

    #[test]
    fn a_followed_log_is_read_on_across_rotations_and_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = ["console.log", "console.log.1"].map(|name| dir.path().join(name));
        let [newest, older] = &files;
        let mut log = Log::default();
        let mut news = || {
            let news = log.news(&files).expect("reads");
            (String::from_utf8(news.bytes).expect("text"), news.new_run, news.gap)
        };
        let said = |text: &str| (text.to_owned(), false, false);
        assert_eq!(news(), said(""));
        std::fs::write(newest, "one ").expect("writes");
        assert_eq!(news(), said("one "));
        let append = |text: &str| {
            let mut file = File::options().append(true).open(newest).expect("opens");
            file.write_all(text.as_bytes()).expect("writes");
        };
        append("two ");
        std::fs::rename(newest, older).expect("rotates");
        std::fs::write(newest, "three ").expect("writes");
        assert_eq!(news(), said("two three "));
        assert_eq!(news(), said(""));
        // A new run: neither file is there any more, then one is.
        std::fs::rename(newest, dir.path().join("previous.log")).expect("rotates");
        std::fs::remove_file(older).expect("removes");
        assert_eq!(news(), said(""));
        std::fs::write(newest, "four ").expect("writes");
        assert_eq!(news(), ("four ".to_owned(), true, false));
        // Two rotations between two looks. The file that was read is kept, so that its number is not used again.
        std::fs::rename(newest, dir.path().join("kept")).expect("rotates");
        std::fs::write(older, "six ").expect("writes");
        std::fs::write(newest, "seven ").expect("writes");
        assert_eq!(news(), ("six seven ".to_owned(), false, true));
    }
}
