//! Standard output, which may be a pipe that is closed or a disk that is full: `println!` panics there.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};

/// Prints a text. Whoever reads may go away when he has seen enough; that is no error.
///
/// # Errors
/// It could not be written, for another reason.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output"),
    }
}
