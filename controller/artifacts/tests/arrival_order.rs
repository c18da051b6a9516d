//! The same image gives the same bytes in whatever order and however slowly its layers come, on one core or many.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use support::raw::{dir, file, hardlink, symlink, tar};
use support::scripted::{Image, open_with, source};
use support::web::{Fault, Reply, Request};
use support::{gzip, image, zstd};

const LAYERS: usize = 4;

type Pack = fn(&[u8]) -> Vec<u8>;

/// Four layers that replace, hide and link what others have, of very different sizes and compressions.
fn served() -> Image {
    let noise = |seed: u32, length: u32| -> Vec<u8> {
        let bytes = (0..length).flat_map(|n| (n ^ seed).wrapping_mul(2_654_435_761).to_le_bytes());
        bytes.collect()
    };
    let data = |name: &str, seed, length| {
        let mut made = file(name, "");
        made.content = noise(seed, length);
        made
    };
    let layers = [
        vec![
            dir("d"),
            data("d/a", 1, 90_000),
            file("d/b", "old"),
            hardlink("c", "d/a"),
            data("lost", 2, 40_000),
        ],
        vec![file("d/b", "new")],
        vec![data("d/a", 3, 10_000), file(".wh.lost", ""), symlink("l", "d")],
        vec![data("l/e", 4, 50_000), hardlink("f", "d/b"), data("d/b", 5, 7)],
    ];
    let pack: [Pack; LAYERS] = [gzip, zstd, |bytes| bytes.to_vec(), gzip];
    let layers = layers.iter().zip(pack);
    let layers: Vec<_> = layers
        .map(|(members, pack)| (tar(members), pack(&tar(members))))
        .collect();
    Image::of(&layers)
}

/// Lets the layers' answers begin in one order only: each when the one before it has been asked for and let go.
struct Order {
    places: Vec<usize>,
    next: Mutex<usize>,
    moved: Condvar,
}

impl Order {
    fn wait(&self, layer: usize) {
        let mut next = self.next.lock().unwrap();
        while *next < self.places.len() && self.places[*next] != layer {
            next = self.moved.wait(next).unwrap();
        }
    }

    fn done(&self) {
        *self.next.lock().unwrap() += 1;
        self.moved.notify_all();
    }
}

fn orders() -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..LAYERS {
        let longer = |order: Vec<usize>| {
            let rest = (0..LAYERS).filter(|n| !order.contains(n)).collect::<Vec<_>>();
            rest.into_iter().map(move |n| [&order[..], &[n]].concat())
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    all
}

/// What a sparse file holds, and where.
fn data(path: &Path) -> Vec<u8> {
    use rustix::fs::{SeekFrom, seek};
    let file = std::fs::File::open(path).unwrap();
    let (mut found, mut at) = (file.metadata().unwrap().len().to_le_bytes().to_vec(), 0);
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        let mut part = vec![0; (at - start) as usize];
        file.read_exact_at(&mut part, start).unwrap();
        // Zeros may be a hole or not.
        for (block, index) in part.chunks(4096).zip(start / 4096..) {
            if block.iter().any(|&byte| byte != 0) {
                found.extend_from_slice(&index.to_le_bytes());
                found.extend_from_slice(block);
            }
        }
    }
    found
}

/// One pull, in this order, by a runtime with so many threads; the disk's content hash and bytes.
fn pulled(served: &Image, order: Vec<usize>, threads: usize, cut: Option<usize>) -> (String, Vec<u8>) {
    let order = Arc::new(Order {
        places: order,
        next: Mutex::new(0),
        moved: Condvar::new(),
    });
    let layers: Vec<(String, Vec<u8>)> = (0..LAYERS).map(|n| served.layer(n)).collect();
    let web = served.serve(move |request: &Request| {
        let (at, (_, bytes)) = layers
            .iter()
            .enumerate()
            .find(|(_, (digest, _))| request.path.ends_with(digest))?;
        let reply = Reply::ranged(request, bytes);
        if request.from().is_some() {
            return Some(reply);
        }
        order.wait(at);
        order.done();
        // Broken off in the middle, the rest comes by another request, after the others.
        Some(match cut {
            Some(part) => reply.fault(Fault::Cut(bytes.len() / part)),
            None => reply,
        })
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let place = tempfile::tempdir().unwrap();
        let (artifacts, mut woken) = open_with(place.path(), |_| ()).await;
        let disk = image(&artifacts, &mut woken, "vm", source(&web)).await.unwrap();
        let bytes = data(&disk.path);
        artifacts.shutdown().await;
        (disk.content_hash.clone(), bytes)
    })
}

#[test]
fn every_order_of_arrival_gives_the_same_bytes() {
    let served = served();
    let (hash, bytes) = pulled(&served, (0..LAYERS).collect(), 2, None);
    for order in orders() {
        let (other, found) = pulled(&served, order.clone(), 2, None);
        assert_eq!(other, hash, "{order:?}");
        assert!(found == bytes, "{order:?}");
    }
}

#[test]
fn one_thread_one_core_and_broken_transfers_give_the_same_bytes() {
    let served = served();
    let (hash, bytes) = pulled(&served, (0..LAYERS).collect(), 2, None);
    for (threads, cut) in [(1, None), (8, None), (1, Some(2)), (2, Some(3)), (8, Some(7))] {
        for order in [[0, 1, 2, 3], [3, 2, 1, 0]] {
            let (other, found) = pulled(&served, order.to_vec(), threads, cut);
            assert!(other == hash && found == bytes, "{threads} {cut:?} {order:?}");
        }
    }
    // All threads of a thread that may use one core only may use that one.
    let alone = std::thread::spawn(move || {
        let mut core = rustix::thread::sched_getaffinity(None).unwrap();
        let first = (0..1024).find(|n| core.is_set(*n)).unwrap();
        core.clear();
        core.set(first);
        rustix::thread::sched_setaffinity(None, &core).unwrap();
        pulled(&served, vec![2, 0, 3, 1], 4, None)
    });
    let (other, found) = alone.join().unwrap();
    assert!(other == hash && found == bytes, "on one core");
}
