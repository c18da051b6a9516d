//! That layers of many entries cost a merge and a disk no more than their number says. There is no clock here: what is
//! counted is the memory that is asked for (what grows or is copied is asked for anew), the components of paths that are
//! walked, and the blocks of the disk. A search that only looks is not counted: names are found in trees and sorted lists.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Cursor;

use support::raw::{Member, dir, file, tar};
use vmlet_artifacts::layers::apply::{Input, flatten};
use vmlet_artifacts::layers::disk::DiskStore;
use vmlet_artifacts::types::Limits;
use vmlet_ext4::{FreeSpace, Options, Size, Writer};

/// The usual allocator, which counts what each thread asks for, and holds.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
    /// What is held now, and the most that was, as the heap of glibc rounds it up.
    static HELD: Cell<(i64, i64)> = const { Cell::new((0, 0)) };
}

fn count(bytes: usize) {
    // Not while a thread ends.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + bytes as u64));
    hold(bytes, 1);
}

fn hold(bytes: usize, sign: i64) {
    let rounded = (bytes + 8).next_multiple_of(16).max(32) as i64;
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        let now = now + sign * rounded;
        held.set((now, most.max(now)));
    });
}

// SAFETY: everything is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        hold(layout.size(), -1);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        hold(layout.size(), -1);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that a merge of these layers and its disk ask for, and bytes that the disk has in use. It fails when more than 128
/// times as many components of paths are walked as there are in the layers.
fn cost(layers: &[Vec<Member>]) -> (u64, u64) {
    let components = |member: &Member| member.name.split(|&byte| byte == b'/').count() as u64;
    let entries = layers.iter().flatten().map(components).sum();
    let limits = Limits {
        entries,
        ..Limits::default()
    };
    let input = |members: &Vec<Member>| Input {
        bytes: Box::new(Cursor::new(tar(members))),
        diff_id: None,
    };
    let inputs = layers.iter().map(input).collect();
    let place = tempfile::NamedTempFile::new().unwrap();
    let free = FreeSpace { percent: 0, bytes: 0 };
    let options = Options::new([1; 16], [2; 16], Size::Auto { free });
    let before = ASKED.get();
    let mut store = DiskStore::new(Writer::create(place.reopen().unwrap(), options).unwrap());
    let cancel = Default::default();
    let tree = flatten(inputs, &mut store, &limits, &cancel, &|| ()).map_err(|(_, error)| error.to_string());
    let summary = store.finish(tree.unwrap(), &cancel).unwrap();
    (ASKED.get() - before, summary.used)
}

/// The most that a merge of this layer and its disk hold at once.
fn most_held(layer: Vec<Member>) -> i64 {
    HELD.set((HELD.get().0, i64::MIN));
    let before = HELD.get().0;
    cost(&[layer]);
    HELD.get().1 - before
}

#[test]
fn extended_attributes_hold_no_more_memory_than_is_counted_of_them() {
    let names: Vec<String> = (0..200).map(|n| format!("user.{n:03}")).collect();
    let with = |value: &[u8]| -> Vec<Member> {
        let attributed = |n: usize| {
            names.iter().fold(file(&format!("f{n}"), ""), |member, name| {
                member.pax(&format!("SCHILY.xattr.{name}"), value)
            })
        };
        (0..300).map(attributed).collect()
    };
    let without = most_held((0..300).map(|n| file(&format!("f{n}"), "")).collect());
    for value in [&b"v"[..], &[7; 40], &[7; 400]] {
        // The tar itself is in memory twice here.
        let layer = with(value);
        let tar = 2 * tar(&layer).len() as i64;
        let counted = 300 * 200 * (8 + value.len() as i64 + 128);
        let held = most_held(layer) - without - tar;
        println!("{} bytes each: {held} held, {counted} counted", value.len());
        assert!(held <= counted, "{held} bytes held, {counted} counted");
    }
}

/// Of four times as many entries, twice and twice again: at most twice of everything each time, with a tenth to spare.
fn linear(what: &str, most: usize, layers: impl Fn(usize) -> Vec<Vec<Member>>) {
    let costs = [most / 4, most / 2, most].map(|count| cost(&layers(count)));
    println!("{what}: {costs:?}");
    for pair in costs.windows(2) {
        let [(asked, used), (more_asked, more_used)] = *pair else {
            continue;
        };
        assert!(more_asked * 10 <= asked * 22, "{what}: memory {costs:?}");
        assert!(more_used * 10 <= used * 22, "{what}: blocks {costs:?}");
    }
    // And it is the entries that cost, not what is there anyhow.
    assert!(costs[2].0 * 10 >= costs[0].0 * 15, "{what}: {costs:?}");
}

fn each(count: usize, member: impl Fn(usize) -> Member) -> Vec<Member> {
    let top = [dir("many")];
    top.into_iter().chain((0..count).map(member)).collect()
}

#[test]
fn h45_twice_as_many_files_or_directories_in_a_directory_cost_twice_as_much() {
    linear("files", 100_000, |count| {
        vec![each(count, |n| file(&format!("many/f{n:06}"), ""))]
    });
    linear("directories", 66_000, |count| {
        vec![each(count, |n| dir(&format!("many/d{n:06}")))]
    });
}

#[test]
fn h45_twice_as_many_entries_that_upper_layers_hide_or_replace_cost_twice_as_much() {
    linear("hidden", 40_000, |count| {
        vec![
            each(count, |n| file(&format!("many/f{n:06}"), "")),
            each(count / 2, |n| file(&format!("many/.wh.f{:06}", n * 2), "")),
            each(count / 4, |n| dir(&format!("many/f{:06}", n * 4))),
        ]
    });
}

#[test]
fn h45_twice_as_many_branches_without_entries_of_their_own_cost_twice_as_much() {
    let deep = ["d"; 300].join("/");
    linear("branches", 200, |count| {
        vec![each(count, |n| file(&format!("{n:06}/{deep}/f"), ""))]
    });
}
