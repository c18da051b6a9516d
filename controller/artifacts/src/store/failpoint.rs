//! Lets a test fail the N-th file operation of its own thread. Compiled to nothing otherwise.

#[cfg(not(test))]
#[inline]
pub fn step() -> std::io::Result<()> {
    Ok(())
}

/// Tells a test what was done.
#[cfg(not(test))]
#[inline]
pub fn done(_: &'static str, _: &std::path::Path) {}

#[cfg(test)]
pub use armed::{Mode, arm, disarm, done, step, take_done};

#[cfg(test)]
mod armed {
    use std::cell::{Cell, RefCell};
    use std::io;
    use std::path::{Path, PathBuf};

    /// What happens at the chosen operation.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Mode {
        /// It fails once; later ones work.
        Error,
        /// It and all later ones fail: to the disk that is a process killed just before it.
        Crash,
    }

    thread_local! {
        static ARMED: Cell<Option<(u32, Mode)>> = const { Cell::new(None) };
        static HIT: Cell<bool> = const { Cell::new(false) };
        static DONE: RefCell<Vec<(&'static str, PathBuf)>> = const { RefCell::new(Vec::new()) };
    }

    pub fn done(what: &'static str, path: &Path) {
        DONE.with_borrow_mut(|all| all.push((what, path.to_path_buf())));
    }

    /// What this thread has done since the last call.
    pub fn take_done() -> Vec<(&'static str, PathBuf)> {
        DONE.take()
    }

    /// Chooses the operation, counted from 0.
    pub fn arm(nth: u32, mode: Mode) {
        ARMED.set(Some((nth, mode)));
        HIT.set(false);
    }

    /// Ends it; says whether the operation was reached.
    pub fn disarm() -> bool {
        ARMED.set(None);
        HIT.get()
    }

    pub fn step() -> io::Result<()> {
        match ARMED.get() {
            None => Ok(()),
            Some((0, mode)) => {
                HIT.set(true);
                if mode == Mode::Error {
                    ARMED.set(None);
                }
                Err(io::Error::other("failpoint"))
            }
            Some((n, mode)) => {
                ARMED.set(Some((n - 1, mode)));
                Ok(())
            }
        }
    }
}
