//! The body of the fuzz target over random bytes: what a fuzzer does for hours, for some seconds.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../fuzz/body.rs"]
mod body;
mod common;

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use common::check;
use common::model::cases;
use common::reader::Image;
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn any_calls_give_a_clean_image_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        if let Some(image) = body::calls(&bytes) {
            let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd()));
            check(&path);
            Image::open(&path).tree();
        }
    }
}
