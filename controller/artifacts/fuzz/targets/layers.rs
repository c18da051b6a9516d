//! Well-formed layers with any names, links and whiteouts, up to the finished disk.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;
#[allow(dead_code)]
#[path = "../../tests/support/raw.rs"]
mod raw;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::layers(bytes));
