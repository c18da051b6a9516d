//! Any layers against a model of the specification that is as plain as it can be: a map of paths. Symbolic links are left
//! out as parents; what they do is in hazards_paths.rs.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "support/raw.rs"]
mod raw;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use raw::{Member, apply, dir, file, hardlink, listed, symlink, tar};
use vmlet_artifacts::types::Limits;

/// One entry of a layer; a path is a list of letters.
#[derive(Clone, Debug)]
enum Step {
    File(Vec<char>, u16),
    Directory(Vec<char>),
    Symlink(Vec<char>),
    Link(Vec<char>, Vec<char>),
    Whiteout(Vec<char>),
    Opaque(Vec<char>),
}

fn any_step() -> impl Strategy<Value = Step> {
    let path = || prop::collection::vec(prop::sample::select(vec!['a', 'b', 'c']), 1..4);
    prop_oneof![
        4 => (path(), any::<u16>()).prop_map(|(path, content)| Step::File(path, content)),
        2 => path().prop_map(Step::Directory),
        1 => path().prop_map(Step::Symlink),
        1 => (path(), path()).prop_map(|(path, target)| Step::Link(path, target)),
        2 => path().prop_map(Step::Whiteout),
        1 => path().prop_map(Step::Opaque),
    ]
}

fn text(path: &[char]) -> String {
    path.iter().map(char::to_string).collect::<Vec<_>>().join("/")
}

fn to_member(step: &Step) -> Member {
    match step {
        Step::File(path, content) => file(&text(path), &content.to_string()),
        Step::Directory(path) => dir(&text(path)),
        // The name has a letter that no parent has, so that nothing goes through a link.
        Step::Symlink(path) => symlink(&format!("{}s", text(path)), "nowhere"),
        Step::Link(path, target) => hardlink(&text(path), &text(target)),
        Step::Whiteout(path) => {
            let (last, above) = path.split_last().unwrap();
            let marker = format!(".wh.{last}");
            let name = if above.is_empty() {
                marker
            } else {
                format!("{}/{marker}", text(above))
            };
            file(&name, "")
        }
        Step::Opaque(path) => file(&format!("{}/.wh..wh..opq", text(path)), ""),
    }
}

type Model = BTreeMap<String, (String, usize)>;

fn remove(tree: &mut Model, path: &str, itself: bool) {
    let below = format!("{path}/");
    tree.retain(|name, _| !(name.starts_with(&below) || itself && name == path));
}

fn is_directory(tree: &Model, path: &str) -> bool {
    tree.get(path).is_some_and(|(word, _)| word == "dir")
}

/// What is at a path: a word, and a number that names of one inode share. `None`: the layers are refused.
fn model(layers: &[Vec<Step>]) -> Option<BTreeMap<String, String>> {
    let mut tree = Model::new();
    let mut inodes = 0;
    for layer in layers {
        for step in layer {
            match step {
                Step::Whiteout(path) => remove(&mut tree, &format!("/{}", text(path)), true),
                Step::Opaque(path) => remove(&mut tree, &format!("/{}", text(path)), false),
                _ => {}
            }
        }
        for step in layer {
            let (path, entry) = match step {
                Step::File(path, content) => (text(path), Some(format!("{:?}", content.to_string()))),
                Step::Directory(path) => (text(path), None),
                Step::Symlink(path) => (format!("{}s", text(path)), Some("-> nowhere".to_owned())),
                Step::Link(path, _) => (text(path), None),
                Step::Whiteout(_) | Step::Opaque(_) => continue,
            };
            let path = format!("/{path}");
            for (at, _) in path.match_indices('/').skip(1) {
                if !is_directory(&tree, &path[..at]) {
                    tree.insert(path[..at].to_owned(), ("dir".to_owned(), 0));
                }
            }
            let source = match step {
                Step::Link(_, target) => {
                    let found = tree.get(&format!("/{}", text(target)))?.clone();
                    if found.0 == "dir" {
                        return None;
                    }
                    // A link in its own place changes nothing.
                    if format!("/{}", text(target)) == path {
                        continue;
                    }
                    Some(found)
                }
                _ => None,
            };
            inodes += 1;
            if matches!(step, Step::Directory(_)) && is_directory(&tree, &path) {
                continue;
            }
            remove(&mut tree, &path, true);
            let word = entry.unwrap_or_else(|| "dir".to_owned());
            tree.insert(path, source.unwrap_or((word, inodes)));
        }
    }
    let links = |inode: usize| {
        tree.values()
            .filter(|(word, other)| word != "dir" && *other == inode)
            .count()
    };
    let words = tree.iter().map(|(path, (word, inode))| match links(*inode) {
        many if many > 1 && word != "dir" => (path.clone(), format!("{word} x{many}")),
        _ => (path.clone(), word.clone()),
    });
    Some(words.collect())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(5),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_layers_merge_as_the_specification_says(
        layers in prop::collection::vec(prop::collection::vec(any_step(), 0..8), 1..5),
    ) {
        let bytes = layers.iter().map(|layer| tar(&layer.iter().map(to_member).collect::<Vec<_>>())).collect();
        let merged = apply(bytes, &Limits::default());
        match (model(&layers), merged) {
            (Some(expected), Ok(tree)) => prop_assert_eq!(listed(&tree), expected),
            (None, Err(_)) => {}
            (expected, merged) => prop_assert!(false, "{:?}, {:?}", expected, merged.map(|tree| listed(&tree))),
        }
    }
}
