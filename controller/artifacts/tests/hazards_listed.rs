//! The hazards of turning layers into a disk, numbered, and that each has a test with its number (`hNN_`) in its name. The
//! numbers are in the names of the tests of hazards_*.rs (1 to 47, 51 to 54), registry_*.rs (48 to 61) and
//! hazards_registry.rs; every file operation of publishing is failed and killed in src/store/faults.rs (62).

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

const HAZARDS: [&str; 62] = [
    "a member that climbs out by `..`",
    "`..` that stays inside",
    "absolute names, `./`, `//`, a slash behind a file",
    "writing through an absolute symbolic link",
    "a symbolic link that climbs out, as a parent",
    "a parent that is a symbolic link to a directory",
    "a directory entry over a symbolic link",
    "a loop of symbolic links as a parent",
    "a hard link out of the root",
    "a hard link with an absolute target",
    "a hard link to a symbolic link",
    "a hard link to a directory",
    "a hard link before its source, or without one",
    "a hard link to a file of a lower layer",
    "the source of a link is hidden or replaced",
    "one link too many",
    "an opaque marker before, after and between its siblings",
    "a whiteout and the same name in one layer",
    "a whiteout of nothing",
    "a whiteout through a symbolic link",
    "whiteouts without a name",
    "an opaque marker at the root",
    "markers in the result",
    "deleted, then made again deeper",
    "a name twice in a layer",
    "a change of type without a whiteout",
    "a directory over a directory",
    "parents without an entry",
    "the root's own entry",
    "long names",
    "targets of symbolic links of every length",
    "names that are no text",
    "PAX overrides",
    "global PAX headers",
    "sparse files of every format",
    "long runs of zeros",
    "device nodes and pipes",
    "setuid, setgid, sticky, no permission at all",
    "file capabilities",
    "extended attributes, many and large",
    "access lists",
    "owners beyond 16 and 31 bits",
    "times with nanoseconds, before 1970, after 2038",
    "old, contiguous and unknown types",
    "large directories, deep trees",
    "damaged and cut archives",
    "data behind the end of the archive",
    "another blob than the digest names; shorter, longer, reset",
    "another size than the descriptor names",
    "another manifest than was asked for",
    "another content than the diff_id names; another number of them",
    "gzip of many members, with zeros or garbage behind it, damaged, cut",
    "zstd of many frames, skippable ones, a huge window",
    "bombs",
    "media types that lie, or that nobody knows",
    "layers that may not be distributed",
    "an index in an index",
    "no entry for the platform, or without one; attestations; variants",
    "huge manifests, thousands of layers",
    "no media type, schema 1, sha512",
    "redirects, logins, 429, standing still",
    "a crash at any point",
];

#[test]
fn every_hazard_has_a_test_that_is_named_after_it() {
    let place = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(path).unwrap();
            names.extend(text.lines().filter_map(|line| {
                let name = line.trim_start().trim_start_matches("async ").strip_prefix("fn h")?;
                Some(format!("h{}", name.split('(').next()?))
            }));
        }
    }
    let missing: Vec<_> = (1..)
        .zip(HAZARDS)
        .filter(|(number, _)| {
            let number = format!("h{number:02}");
            !names.iter().any(|name| name.split('_').any(|word| word == number))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
