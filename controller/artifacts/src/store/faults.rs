//! Every file operation of a pull's life is failed once, and the process is "killed" before each:
//! whatever happens, the next open finds a legal state.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::failpoint::{Mode, arm, disarm, take_done};
use super::record::{Artefact, Content};
use super::{Id, Store};
use crate::types::{ArtefactKind, ImageConfig, Interest};

const BYTES: &[u8] = b"the disk's bytes";

fn id(n: u8) -> Id {
    (ArtefactKind::Image, format!("{n:02x}").repeat(32))
}

fn open(dir: &Path) -> Store {
    Store::open(dir).expect("the store opens whatever is in it").0
}

fn pull(store: &Store, id: &Id) -> io::Result<()> {
    let pull = store.begin(id.clone(), "sha256:d", "r.example/i")?;
    let published = fs::write(pull.dir.join("root.ext4"), BYTES).and_then(|()| {
        let content = Content::Image {
            disk: "root.ext4".into(),
            content_hash: "sha256:c".into(),
            config: ImageConfig::default(),
        };
        store.publish(&pull, content, ["credentials:one".to_owned()].into())
    });
    store.abandon(&pull);
    published
}

/// What the life of an artefact promised so far, step by step.
#[derive(Debug, Default)]
struct Promised {
    published: bool,
    granted: bool,
    pinned: bool,
    unpinned: bool,
    collected: bool,
}

fn life(store: &Store, promised: &mut Promised) -> io::Result<()> {
    let (it, who) = (id(1), Interest("uid".into()));
    pull(store, &it)?;
    promised.published = true;
    store.grant(&it, ["credentials:two".to_owned()].into())?;
    promised.granted = true;
    assert!(store.pin(&who, &it, "source")?, "what is published can be pinned");
    promised.pinned = true;
    store.unpin(&who)?;
    promised.unpinned = true;
    store.collect(Duration::ZERO)?;
    promised.collected = true;
    Ok(())
}

/// Each name is absent or complete, promises are kept, and nothing is left over.
fn check_legal(dir: &Path, store: &Store, promised: &Promised) {
    let artefact = store.get(&id(1)).unwrap();
    if let Some(Artefact::Image(disk)) = &artefact {
        assert_eq!(fs::read(&disk.path).unwrap(), BYTES);
        assert_eq!(fs::metadata(&disk.path).unwrap().permissions().mode() & 0o777, 0o444);
        assert!(
            store.is_granted(&id(1), "credentials:one"),
            "what is there knows who made it: {promised:?}"
        );
    }
    assert!(!store.is_granted(&id(1), "credentials:three"));
    if promised.published && !promised.unpinned {
        assert!(artefact.is_some(), "published means published: {promised:?}");
    }
    if promised.granted && artefact.is_some() {
        assert!(store.is_granted(&id(1), "credentials:two"), "{promised:?}");
    }
    if promised.pinned && !promised.unpinned {
        // An unpin that was cut off may have happened or not.
        let pinned = store.pin_of(&Interest("uid".into()), ArtefactKind::Image).is_some();
        assert!(pinned || artefact.is_some(), "{promised:?}");
    }
    if promised.unpinned {
        assert!(store.pinners().is_empty(), "{promised:?}");
    }
    if promised.collected {
        assert!(artefact.is_none(), "{promised:?}");
    }
    for swept in ["tmp", "intents", "quarantine"] {
        let left: Vec<_> = fs::read_dir(dir.join(swept))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        assert!(left.is_empty(), "left in {swept}: {left:?} after {promised:?}");
    }
    let accesses = fs::read_dir(dir.join("access")).unwrap().count();
    assert_eq!(
        accesses,
        usize::from(artefact.is_some()),
        "access records match what is there: {promised:?}"
    );
}

fn for_every_operation(mode: Mode) -> u32 {
    for n in 0.. {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("artifacts");
        let store = open(&dir);
        let mut promised = Promised::default();
        arm(n, mode);
        let result = life(&store, &mut promised);
        let reached = disarm();
        if !reached {
            result.unwrap();
            return n;
        }
        drop(store);
        let store = open(&dir);
        check_legal(&dir, &store, &promised);
        // And the store is usable: the same life succeeds now.
        life(&store, &mut Promised::default()).unwrap();
    }
    unreachable!("the loop ends when an operation is not reached")
}

#[test]
fn a_kill_before_any_file_operation_leaves_a_legal_state() {
    let operations = for_every_operation(Mode::Crash);
    assert!(operations > 30, "only {operations} operations were counted");
}

#[test]
fn an_error_of_any_file_operation_leaves_a_legal_state() {
    for_every_operation(Mode::Error);
}

#[test]
fn an_error_of_any_file_operation_leaves_the_running_store_usable() {
    for n in 0.. {
        let temp = tempfile::tempdir().unwrap();
        let store = open(&temp.path().join("artifacts"));
        arm(n, Mode::Error);
        let _ = life(&store, &mut Promised::default());
        let reached = disarm();
        life(&store, &mut Promised::default()).unwrap();
        if !reached {
            break;
        }
    }
}

#[test]
fn a_kill_before_any_file_operation_of_opening_is_repaired_by_the_next_open() {
    for n in 0.. {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("artifacts");
        // The last process died in the middle of a pull; a neighbour is published.
        let store = open(&dir);
        pull(&store, &id(1)).unwrap();
        let dying = store.begin(id(2), "sha256:d", "r.example/i").unwrap();
        fs::write(dying.dir.join("root.ext4"), b"half").unwrap();
        arm(n, Mode::Crash);
        let opened = Store::open(&dir);
        let reached = disarm();
        drop(opened);
        let (store, _) = Store::open(&dir).unwrap();
        check_legal(
            &dir,
            &store,
            &Promised {
                published: true,
                ..Promised::default()
            },
        );
        assert!(store.get(&id(2)).unwrap().is_none());
        if !reached {
            break;
        }
    }
}

#[test]
fn an_interrupted_pull_is_reported_and_its_bytes_are_swept() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path());
    let dying = store.begin(id(2), "sha256:d", "r.example/i").unwrap();
    fs::write(dying.dir.join("root.ext4"), b"half").unwrap();
    let (store, found) = Store::open(temp.path()).unwrap();
    assert_eq!(found.interrupted.len(), 1);
    assert_eq!(found.interrupted[0].source, "r.example/i");
    assert!(store.inventory().is_empty());
    assert_eq!(fs::read_dir(temp.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn torn_and_foreign_records_are_set_aside_and_harm_no_neighbour() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 7] = [
        ("empty", |d| fs::write(d.join("record.json"), b"").unwrap()),
        ("torn", |d| {
            fs::write(d.join("record.json"), b"{\"version\":1,\"kind\":").unwrap()
        }),
        ("newer", |d| {
            fs::write(d.join("record.json"), b"{\"version\":2,\"novel\":true}").unwrap()
        }),
        ("endless", |d| {
            fs::write(d.join("record.json"), vec![b' '; 2 << 20]).unwrap()
        }),
        ("gone", |d| fs::remove_file(d.join("record.json")).unwrap()),
        ("a link", |d| {
            fs::remove_file(d.join("record.json")).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", d.join("record.json")).unwrap();
        }),
        ("a truncated disk", |d| {
            fs::set_permissions(d.join("root.ext4"), fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(d.join("root.ext4"), b"").unwrap();
        }),
    ];
    for (name, damage) in damages {
        let temp = tempfile::tempdir().unwrap();
        let store = open(temp.path());
        pull(&store, &id(1)).unwrap();
        pull(&store, &id(2)).unwrap();
        let dir = store.published(&id(1));
        for file in ["record.json", "root.ext4"] {
            fs::set_permissions(dir.join(file), fs::Permissions::from_mode(0o644)).unwrap();
        }
        damage(&dir);
        let (store, found) = Store::open(temp.path()).unwrap();
        assert_eq!(found.set_aside.len(), 1, "{name}: {found:?}");
        assert!(store.get(&id(1)).unwrap().is_none(), "{name}");
        assert!(
            store.get(&id(2)).unwrap().is_some(),
            "{name}: the neighbour is untouched"
        );
        assert_eq!(
            fs::read_dir(temp.path().join("quarantine")).unwrap().count(),
            1,
            "{name}"
        );
        pull(&store, &id(1)).unwrap();
        assert!(store.get(&id(1)).unwrap().is_some(), "{name}: it can be made again");
    }
}

#[test]
fn a_lost_pin_stops_collection_rather_than_losing_a_disk_in_use() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path());
    pull(&store, &id(1)).unwrap();
    let who = Interest("uid".into());
    assert!(store.pin(&who, &id(1), "source").unwrap());
    let pin = fs::read_dir(temp.path().join("pins"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::write(&pin, b"{").unwrap();
    let (store, found) = Store::open(temp.path()).unwrap();
    assert!(found.pins_lost);
    assert!(store.collect(Duration::ZERO).unwrap().is_empty());
    assert!(store.get(&id(1)).unwrap().is_some());
}

#[test]
fn a_disk_whose_directory_was_removed_by_hand_counts_as_absent_and_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    pull(&store, &id(1)).unwrap();
    fs::remove_dir_all(store.published(&id(1))).unwrap();
    assert_eq!(store.get(&id(1)).unwrap(), None);
    assert_eq!(store.get(&id(1)).unwrap(), None, "and says so again");
    pull(&store, &id(1)).unwrap();
    assert!(store.get(&id(1)).unwrap().is_some());
}

#[test]
fn logins_are_remembered_up_to_a_bound_and_that_anybody_may_have_it_for_ever() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path());
    pull(&store, &id(1)).unwrap();
    store
        .grant(&id(1), [crate::pulls::identity::ANYBODY.to_owned()].into())
        .unwrap();
    // As many as there may be, at once: one by one would be a thousand fsyncs.
    let many = (0..998).map(|n| format!("credentials:{n:04}"));
    store.index().artefacts.get_mut(&id(1)).unwrap().proofs.extend(many);
    for n in 0..3 {
        store.grant(&id(1), [format!("credentials:new {n}")].into()).unwrap();
    }
    drop(store);
    let store = open(temp.path());
    let proofs = store.index().artefacts[&id(1)].proofs.clone();
    assert_eq!(proofs.len(), 1000);
    for kept in [
        crate::pulls::identity::ANYBODY,
        "credentials:new 0",
        "credentials:new 2",
    ] {
        assert!(proofs.contains(kept), "{kept}");
    }
}

#[test]
fn a_disk_damaged_while_running_is_set_aside_and_counts_as_absent() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path());
    pull(&store, &id(1)).unwrap();
    fs::remove_file(store.published(&id(1)).join("root.ext4")).unwrap();
    assert!(store.get(&id(1)).unwrap().is_none());
    pull(&store, &id(1)).unwrap();
    assert!(store.get(&id(1)).unwrap().is_some());
}

#[test]
fn planted_links_and_foreign_files_are_not_followed() {
    let temp = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), b"x").unwrap();
    let dir = temp.path();
    drop(open(dir));
    for place in ["tmp", "images", "kernels", "intents", "access", "pins"] {
        std::os::unix::fs::symlink(outside.path(), dir.join(place).join("link")).unwrap();
    }
    let (store, _) = Store::open(dir).unwrap();
    assert!(store.inventory().is_empty());
    assert!(outside.path().join("precious").exists());
    // The next open finds nothing to say.
    let (_, found) = Store::open(dir).unwrap();
    assert!(found.set_aside.is_empty(), "{found:?}");
}

#[test]
fn what_is_pinned_or_recent_is_not_collected() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path());
    pull(&store, &id(1)).unwrap();
    pull(&store, &id(2)).unwrap();
    assert!(store.pin(&Interest("uid".into()), &id(1), "source").unwrap());
    assert!(store.collect(Duration::from_secs(3600)).unwrap().is_empty());
    let removed = store.collect(Duration::ZERO).unwrap();
    assert_eq!(removed.iter().map(|c| &c.id).collect::<Vec<_>>(), [&id(2).1]);
    assert!(
        !store.pin(&Interest("late".into()), &id(2), "source").unwrap(),
        "gone is said, not pinned"
    );
}

#[test]
fn a_pull_that_names_files_outside_its_directory_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path());
    for name in ["../root.ext4", "/etc/passwd", "", "..", "record.json"] {
        let pull = store.begin(id(1), "sha256:d", "s").unwrap();
        let content = Content::Image {
            disk: name.into(),
            content_hash: String::new(),
            config: ImageConfig::default(),
        };
        store
            .publish(&pull, content, ["anybody".to_owned()].into())
            .unwrap_err();
        store.abandon(&pull);
    }
    assert!(store.inventory().is_empty());
}

#[test]
fn a_vmm_without_privileges_can_reach_the_disk_but_not_list_the_store() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(&temp.path().join("artifacts"));
    pull(&store, &id(1)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let dir = store.published(&id(1));
    assert_eq!(mode(&dir), 0o755);
    assert_eq!(mode(&dir.join("root.ext4")), 0o444);
    assert_eq!(mode(dir.parent().unwrap()), 0o711);
    assert_eq!(mode(&temp.path().join("artifacts/pins")), 0o700);
    assert_eq!(mode(&temp.path().join("artifacts/access.key")), 0o600);
}

#[test]
fn what_is_published_is_durable_with_its_names_before_that_is_promised() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(&temp.path().join("artifacts"));
    let making = store.begin(id(1), "sha256:d", "r.example/i").unwrap();
    fs::write(making.dir.join("root.ext4"), BYTES).unwrap();
    take_done();
    let content = Content::Image {
        disk: "root.ext4".into(),
        content_hash: "sha256:c".into(),
        config: ImageConfig::default(),
    };
    store.publish(&making, content, ["anybody".to_owned()].into()).unwrap();
    let done = take_done();
    let at = |what: &str, path: &Path| {
        let found = done.iter().position(|(w, p)| *w == what && p == path);
        found.unwrap_or_else(|| panic!("no {what} of {}: {done:?}", path.display()))
    };
    let target = store.published(&id(1));
    let published = at("rename", &target);
    for file in ["root.ext4", "record.json"] {
        assert!(at("sync file", &making.dir.join(file)) < published, "{done:?}");
    }
    assert!(at("sync directory", &making.dir) < published, "{done:?}");
    let parent = target.parent().unwrap();
    assert!(
        at("sync directory", parent) > published,
        "the new name itself: {done:?}"
    );
    // And the same for a pin, which is what keeps it.
    assert!(store.pin(&Interest("uid".into()), &id(1), "source").unwrap());
    let done = take_done();
    let (what, place) = done.last().unwrap();
    assert_eq!(
        (*what, place.file_name().unwrap().to_str()),
        ("sync directory", Some("pins"))
    );
}
