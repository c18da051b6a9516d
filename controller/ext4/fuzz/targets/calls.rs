//! Any calls of the writer, in any order, with any arguments.
#![no_main]

#[path = "../body.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = body::calls(bytes);
});
