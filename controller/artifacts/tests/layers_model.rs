//! Any layers against a model of the specification that is as plain as it can be: a map of paths. Symbolic links are followed
//! wherever they are parents.

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
    Symlink(Vec<char>, &'static str),
    Link(Vec<char>, Vec<char>),
    Whiteout(Vec<char>),
    Opaque(Vec<char>),
}

/// What links say; some lead nowhere, some in circles.
const TARGETS: [&str; 8] = ["a", "/b", "/a/b", "../c", ".", "b/../a", "/c/a/", "nowhere"];

fn any_step() -> impl Strategy<Value = Step> {
    let path = || prop::collection::vec(prop::sample::select(vec!['a', 'b', 'c']), 1..4);
    prop_oneof![
        4 => (path(), any::<u16>()).prop_map(|(path, content)| Step::File(path, content)),
        2 => path().prop_map(Step::Directory),
        2 => (path(), prop::sample::select(TARGETS.to_vec())).prop_map(|(path, target)| Step::Symlink(path, target)),
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
        Step::Symlink(path, target) => symlink(&text(path), target),
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

fn remove(tree: &mut Model, path: &str) {
    let taken = Taken::Path(path.to_owned());
    tree.retain(|name, _| !taken.takes(name));
}

fn is_directory(tree: &Model, path: &str) -> bool {
    tree.get(path).is_some_and(|(word, _)| word == "dir")
}

/// Where a path leads in a tree, links followed also at its end, and how many there were.
enum Way {
    To(String, usize),
    /// A link that is gone is on it.
    Barred,
    Circle,
}

fn walk(tree: &Model, path: &str, gone: &[Taken]) -> Way {
    let mut here: Vec<String> = Vec::new();
    let mut links = 0;
    let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    while let Some(name) = todo.pop() {
        match &*name {
            "" | "." => continue,
            ".." => drop(here.pop()),
            _ => here.push(name),
        }
        let place = format!("/{}", here.join("/"));
        let Some(target) = tree.get(&place).and_then(|(word, _)| word.strip_prefix("-> ")) else {
            continue;
        };
        if gone.iter().any(|taken| taken.takes(&place)) {
            return Way::Barred;
        }
        links += 1;
        if links > 40 {
            return Way::Circle;
        }
        here.pop();
        if target.starts_with('/') {
            here.clear();
        }
        todo.extend(target.split('/').rev().map(str::to_owned));
    }
    let whole: String = here.iter().map(|name| format!("/{name}")).collect();
    Way::To(whole, links)
}

/// What goes below a layer.
#[derive(Clone, Debug, PartialEq)]
enum Taken {
    Path(String),
    Below(String),
}

impl Taken {
    fn takes(&self, path: &str) -> bool {
        match self {
            Taken::Path(own) => path == own || path.starts_with(&format!("{own}/")),
            Taken::Below(own) => path.starts_with(&format!("{own}/")),
        }
    }
}

/// A step's directory, and its name in it.
fn place(step: &Step) -> (String, Option<String>) {
    match step {
        Step::Opaque(path) => (text(path), None),
        Step::File(path, _)
        | Step::Directory(path)
        | Step::Symlink(path, _)
        | Step::Link(path, _)
        | Step::Whiteout(path) => {
            let (last, above) = path.split_last().unwrap();
            (text(above), Some(last.to_string()))
        }
    }
}

fn is_marker(step: &Step) -> bool {
    matches!(step, Step::Whiteout(_) | Step::Opaque(_))
}

/// What a step takes away of the lower tree, when some of it is gone anyhow; behind how many links.
fn taken(lower: &Model, step: &Step, gone: &[Taken]) -> (Option<Taken>, usize) {
    let (directory, name) = place(step);
    match (walk(lower, &directory, gone), name) {
        (Way::To(at, links), None) => (Some(Taken::Below(at)), links),
        (Way::To(at, links), Some(name)) => {
            let path = format!("{at}/{name}");
            let stays = matches!(step, Step::Directory(_)) && is_directory(lower, &path);
            let there = lower.contains_key(&path) && !stays;
            (there.then_some(Taken::Path(path)), links)
        }
        (Way::Barred, _) => (None, 0),
        (Way::Circle, _) => (None, 41),
    }
}

/// What the markers of a layer hide. `None`: one of them is refused.
fn hidden(lower: &Model, layer: &[Step]) -> Option<Vec<Taken>> {
    let mut gone: Vec<Taken> = Vec::new();
    for links in 0..=41 {
        let judged = layer.iter().filter(|step| taken(lower, step, &[]).1 == links);
        let more: Vec<Taken> = judged.filter_map(|step| taken(lower, step, &gone).0).collect();
        gone.extend(more);
    }
    let mut hidden = Vec::new();
    for step in layer.iter().filter(|step| is_marker(step)) {
        let own = taken(lower, step, &[]).0;
        let others: Vec<Taken> = gone
            .iter()
            .filter(|taken| Some(*taken) != own.as_ref())
            .cloned()
            .collect();
        if let Way::Circle = walk(lower, &place(step).0, &others) {
            return None;
        }
        hidden.extend(taken(lower, step, &others).0);
    }
    Some(hidden)
}

/// What is at a path: a word, and a number that names of one inode share. `None`: the layers are refused.
fn model(layers: &[Vec<Step>]) -> Option<BTreeMap<String, String>> {
    let mut tree = Model::new();
    let mut inodes = 0;
    for layer in layers {
        let hidden = hidden(&tree, layer)?;
        tree.retain(|path, _| !hidden.iter().any(|taken| taken.takes(path)));
        for step in layer.iter().filter(|step| !is_marker(step)) {
            let (directory, name) = place(step);
            let Way::To(above, _) = walk(&tree, &directory, &[]) else {
                return None;
            };
            let path = format!("{above}/{}", name?);
            for (at, _) in path.match_indices('/').skip(1) {
                if !is_directory(&tree, &path[..at]) {
                    tree.insert(path[..at].to_owned(), ("dir".to_owned(), 0));
                }
            }
            let new = match step {
                Step::File(_, content) => (format!("{:?}", content.to_string()), inodes + 1),
                Step::Symlink(_, target) => (format!("-> {target}"), inodes + 1),
                Step::Link(_, target) => {
                    let (last, above) = target.split_last()?;
                    let Way::To(above, _) = walk(&tree, &text(above), &[]) else {
                        return None;
                    };
                    let source = format!("{above}/{last}");
                    let found = tree.get(&source)?.clone();
                    if found.0 == "dir" {
                        return None;
                    }
                    // A link in its own place changes nothing.
                    if source == path {
                        continue;
                    }
                    found
                }
                _ => ("dir".to_owned(), 0),
            };
            inodes += 1;
            if new.0 == "dir" && is_directory(&tree, &path) {
                continue;
            }
            remove(&mut tree, &path);
            tree.insert(path, new);
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
