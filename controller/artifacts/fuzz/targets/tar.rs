//! The bytes of one layer, as they come.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;
#[allow(dead_code)]
#[path = "../../tests/support/raw.rs"]
mod raw;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::tar(bytes));
