//! Lines for the console. The host boots with `loglevel=4`: only errors (`<3>`) are seen there.

use std::fs::OpenOptions;
use std::io::Write;

/// Something went wrong.
pub fn error(text: &str) {
    write(3, text);
}

/// Something worth finding in `dmesg`.
pub fn info(text: &str) {
    write(6, text);
}

fn write(level: u8, text: &str) {
    // One write is one record of the kernel's log; a line break would end it.
    let line = format!("<{level}>vmlet-init: {}\n", text.replace('\n', "; "));
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = log.write_all(line.as_bytes());
    }
}
