//! The bodies of the fuzz targets over random bytes: what a fuzzer does for hours, for a second.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "../fuzz/bodies.rs"]
mod bodies;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "support/raw.rs"]
mod raw;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use raw::{Member, dir, file, hardlink, member, open_tar, symlink};

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(11),
        ..ProptestConfig::default()
    }
}

/// A layer with one of everything, to be damaged.
fn whole() -> Vec<u8> {
    let sparse = Member {
        content: b"end".to_vec(),
        ..member(b'S', "old sparse")
    };
    let mapped = file("GNUSparseFile.1/s", "end")
        .pax("GNU.sparse.name", b"s")
        .pax("GNU.sparse.size", b"5000")
        .pax("GNU.sparse.numblocks", b"1")
        .pax("GNU.sparse.map", b"4997,3");
    let long = "n".repeat(150);
    open_tar(&[
        dir("d"),
        file("d/f", "content")
            .pax("mtime", b"1.5")
            .pax("SCHILY.xattr.user.x", b"value"),
        mapped,
        hardlink("d/h", "d/f"),
        symlink("l", &long),
        file(&long, "x"),
        sparse,
        file("d/.wh.f", ""),
    ])
}

/// What a fuzzer begins with; each is worth something by itself.
#[test]
fn the_seeds_do_what_they_are_named_after() {
    let seeds = |target: &str| {
        let place = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/seeds")
            .join(target);
        let paths = std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path());
        paths.map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>()
    };
    let (tars, layers) = (seeds("tar"), seeds("layers"));
    assert!(tars.len() >= 15 && layers.len() >= 5);
    for bytes in tars {
        bodies::tar(&bytes);
        // And cut off everywhere.
        (0..bytes.len()).step_by(37).for_each(|end| bodies::tar(&bytes[..end]));
    }
    layers.iter().for_each(|bytes| bodies::layers(bytes));
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_damaged_layer_is_an_error_or_another_layer(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in any::<prop::sample::Index>(),
        cuts in prop::bool::weighted(0.2),
    ) {
        let mut bytes = whole();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        bodies::tar(&bytes);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        bodies::tar(&bytes);
        for magic in [&[0x1f, 0x8b, 8, 0][..], &[0x28, 0xb5, 0x2f, 0xfd]] {
            bodies::tar(&[magic, &bytes].concat());
        }
    }
}

proptest! {
    #![proptest_config(cases(120))]

    #[test]
    fn well_formed_layers_of_any_names_become_the_same_disk_twice_or_are_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        bodies::layers(&bytes);
    }
}
