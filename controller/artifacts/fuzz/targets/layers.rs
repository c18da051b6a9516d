//! Well-formed layers with any names, links and whiteouts, up to the finished disk.
#![no_main]

#[allow(dead_code, reason = "shared with the other target")]
#[path = "../bodies.rs"]
mod bodies;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../../tests/support/raw.rs"]
mod raw;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::layers(bytes));
